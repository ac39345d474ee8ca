"""What is counted of an evaluation: intervals, groups and their table."""

import pytest

from foveate.calibration.evaluation.result import Evaluation, Judged, Trial, group, wilson
from foveate.calibration.evaluation.table import describe_evaluation


def test_wilson() -> None:
    """Figures of Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718), (29, 29, 0.8830, 1.0),
    ):  # fmt: skip
        assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


def test_groups() -> None:
    def one(name: str, data: str, right: bool, later: bool, **tags: str) -> Judged:
        trials = (Trial("random", 0.5, "E", later, 0.5),)
        return Judged(data, name, tags, 8, "E", right, trials)

    judged = [
        one("1", "a", True, True, task="letter", scope="local"),
        one("2", "a", True, False, task="count"),
        one("3", "b", False, True, task="count"),
        Judged("b", "4", unreadable="gone"),
    ]
    groups = group(judged)
    assert [(one.kind, one.name, one.full.n, one.full.right) for one in groups] == [
        ("all", "", 3, 2), ("data", "a", 2, 2), ("data", "b", 1, 0), ("scope", "local", 1, 1),
        ("task", "letter", 1, 1), ("task", "count", 2, 1),
    ]  # fmt: skip
    assert [one.rows[0].score.right for one in groups] == [2, 1, 1, 1, 1, 1]
    assert [one.of_full(one.rows[0]) for one in groups] == [100, 50, None, 100, 100, 100]
    evaluation = Evaluation({"checkpoint": "nano", "data": [{"path": "a"}]}, judged, groups, 1.0, 1)
    told = describe_evaluation(evaluation)
    assert "66.7 (100 %) 20.8–93.9" in told
    assert "unreadable, and counted nowhere: 1 record; the first is 4: gone" in told
