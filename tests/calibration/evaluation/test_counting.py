"""What is counted: intervals, differences of pairs, groups, and the table and plot of them."""

from itertools import pairwise

import numpy as np
import pytest

from foveate.calibration.evaluation.groups import count_group
from foveate.calibration.evaluation.intervals import Bootstrap, Estimate, Score, widened, wilson
from foveate.calibration.evaluation.judged import Judged, Overlap, Trial
from foveate.calibration.evaluation.plot import GAP, TOP, draw_evaluation, spread
from foveate.calibration.evaluation.result import Evaluation, group
from foveate.calibration.evaluation.table import describe_evaluation


def judged(name: str, picture: str, *right: float, **more: object) -> Judged:
    """A question rightly answered with all tokens: own and other at 25 %, and one token."""
    ways = (("own", "attention", 0.25), ("other", "attention", 0.25), ("one-token", "", None))
    trials = tuple(
        Trial(way, ranking, keep, "E", score, 0.25, 0.5, 0.1)
        for (way, ranking, keep), score in zip(ways, right, strict=False)
    )
    overlaps = (Overlap("attention", 0.25, 0.5, 0.2),)
    facts = {
        "data": "a",
        "score": 1.0,
        "answer": "E",
        "tokens": 8,
        "trials": trials,
        "overlaps": overlaps,
    }
    return Judged(id=name, picture=picture, **{**facts, **more})  # type: ignore[arg-type]


def test_wilson() -> None:
    """Figures of Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718), (29, 29, 0.8830, 1.0),
    ):  # fmt: skip
        assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    assert Score(20, 0).estimate.high == pytest.approx(16.11, abs=5e-3)


def test_the_bootstrap_draws_pictures_whole() -> None:
    """Ten questions a picture that agree are as one: the interval is that of 20 pictures, not of 200."""
    right = np.repeat([1.0, 0.0], 100)
    every = np.ones(200)
    alone = Bootstrap([str(n) for n in range(200)], 0).ratios({"x": (right, every)})["x"]
    together = Bootstrap([str(n // 10) for n in range(200)], 0).ratios({"x": (right, every)})["x"]
    assert alone.value == together.value == 50
    # Standard errors of a share of one half: 3.5 points of 200, 11.2 of 20.
    assert alone.high is not None and together.high is not None
    assert alone.high - 50 == pytest.approx(1.96 * 3.54, rel=0.15)
    assert together.high - 50 == pytest.approx(1.96 * 11.2, rel=0.15)
    again = Bootstrap([str(n // 10) for n in range(200)], 0).ratios({"x": (right, every)})["x"]
    assert again == together
    missing = Bootstrap(["a", "a", "b"], 0).ratios({"x": (np.array([1, np.nan, 0]), np.ones(3))})[
        "x"
    ]
    assert (missing.n, missing.value) == (2, 50)
    single = Bootstrap(["a", "a"], 0).ratios({"x": (np.array([1, 0.0]), np.ones(2))})["x"]
    assert (single.low, single.high) == (None, None)


def test_pairs_that_never_differ_still_have_an_interval() -> None:
    found = widened(Estimate(20, 0.0, 0.0, 0.0))
    assert found.high == pytest.approx(16.11, abs=5e-3)
    assert found.low == -found.high  # type: ignore[operator]
    assert widened(Estimate(20, 5.0, 5.0, 5.0)).high == 5


def test_selectivity_is_of_questions_that_have_both() -> None:
    one = count_group(
        "all", "", "exact",
        [judged("1", "a", 1, 0), judged("2", "b", 1, 1), judged("3", "c", 0),
         judged("4", "d", 1, 1, score=0.0, trials=(), overlaps=())], 0,
    )  # fmt: skip
    assert (one.full.n, one.full.value, one.asked, one.pictures) == (4, 75, 3, 3)
    own, other = one.rows
    assert (own.kept.n, other.kept.n) == (3, 2)
    assert own.kept.value == pytest.approx(200 / 3)
    (gap,) = one.selectivity
    assert (gap.own, gap.other, gap.points.value, gap.points.n) == (100, 50, 50, 2)
    assert one.shared[0].jaccard.value == 50
    assert one.shared[0].chance == pytest.approx(20)


def test_words_are_shares_of_what_all_tokens_give() -> None:
    members = [judged("1", "a", 0.4, 0.2, score=0.8), judged("2", "b", 0.2, 0.2, score=0.4)]
    one = count_group("all", "", "words", members, 0)
    assert one.full.value == pytest.approx(60)
    assert [row.kept.value for row in one.rows] == pytest.approx([50, 100 / 3])
    assert one.selectivity[0].points.value == pytest.approx(100 / 6)


def test_groups_table_and_plot() -> None:
    members = [
        judged("1", "a", 1, 0, 1, tags={"task": "letter", "scope": "local"}),
        judged("2", "a", 1, 1, 0, tags={"task": "count"}, data="b"),
        judged("3", "b", 0.5, 0.1, score=0.5, measure="words", tags={"task": "caption"}),
        Judged("b", "4", "gone.png", unreadable="gone"),
    ]
    groups = group(members, 0)
    assert [(one.kind, one.name, one.measure, one.full.n) for one in groups] == [
        ("all", "", "exact", 2), ("all", "", "words", 1),
        ("data", "a", "exact", 1), ("data", "b", "exact", 1), ("data", "a", "words", 1),
        ("scope", "local", "exact", 1), ("task", "letter", "exact", 1), ("task", "count", "exact", 1),
        ("task", "caption", "words", 1),
    ]  # fmt: skip
    made = {"kind": "checkpoint", "checkpoint": "nano", "seed": 0, "data": [{"path": "a"}]}
    evaluation = Evaluation(made, members, 1.0, 1)
    told = describe_evaluation(evaluation)
    assert told.splitlines()[2].split() == ["attention", "+50.0", "2", "questions"]
    assert "the asked thing's middle token alone  50.0 (9.5–90.5)" in told
    assert "unreadable, and counted nowhere: 1 question; the first is 4: gone" in told
    assert "another question about another thing in the same picture: 3 questions" in told
    figure = draw_evaluation(evaluation)
    exact, words = figure.axes
    texts = [one.get_text() for one in exact.texts]
    assert {"own question", "another question", "selectivity\n+50 points"} <= set(texts)
    assert "words of captions" in words.get_ylabel()


def test_labels_move_apart() -> None:
    assert spread([90, 50, 20]) == [90, 50, 20]
    places = spread([100, 100, 99, 1, 0, 0, 0])
    assert all(above - below >= GAP - 1e-9 for above, below in pairwise(places))
    assert places[0] <= TOP
    assert places[-1] >= 0
