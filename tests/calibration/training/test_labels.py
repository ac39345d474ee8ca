"""Labels: the top half of relevance as a distribution."""

import numpy as np
import pytest

from foveate.calibration.relevance.store import Sample
from foveate.calibration.training.labels import contrast, label, label_maker


def made(*values: float) -> list[float] | None:
    target = label(np.array(values, np.float32))
    return None if target is None else target.tolist()


def test_the_bottom_half_is_masked_and_the_rest_divided_by_its_sum() -> None:
    assert made(1, 3, 0.5, 5) == [0, 0.375, 0, 0.625]
    assert made(4, 1, 2) == pytest.approx([2 / 3, 0, 1 / 3])
    assert made(7) == [1]


def test_of_equal_values_the_first_are_kept() -> None:
    assert made(1, 1, 1, 1) == [0.5, 0.5, 0, 0]
    assert made(0, 2, 1, 1, 1) == [0, 0.5, 0.25, 0.25, 0]


def test_negative_relevance_is_none() -> None:
    """Eq. 1 is signed: a value below zero in the upper half is nothing to attend to."""
    assert made(-3, 2, -1, -2) == [0, 1, 0, 0]


@pytest.mark.parametrize(
    "values", [(0, 0, 0), (-1, -2), (), (1, np.nan, 2), (np.inf, 1, 1), (1, 1, 1, -np.inf)]
)
def test_what_is_no_distribution_has_no_label(values: tuple[float, ...]) -> None:
    assert made(*values) is None


def test_a_label_is_a_distribution_of_float32() -> None:
    relevance = np.random.default_rng(0).normal(size=1501).astype(np.float32) * 1e-20
    before = relevance.copy()
    target = label(relevance)
    assert target is not None
    assert target.dtype == np.float32
    assert target.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert (target > 0).sum() <= 751
    assert np.array_equal(relevance, before)


# Contrast


def asked(name: str, *values: float, pictures: tuple[str, ...] = ("a.png",)) -> Sample:
    """A question's relevance."""
    relevance = np.array(values, np.float32)
    return Sample(name, "?", (), pictures=pictures, relevance=relevance)


def test_what_all_questions_have_weighs_less() -> None:
    """Two things and a border that every question looks at: the border loses to the thing."""
    first, second = asked("1", 4, 1, 0, 5, 0, 0), asked("2", 1, 4, 0, 5, 0, 0)
    make = label_maker("contrast", [first, second])
    plain = label(first.relevance)
    assert plain is not None and plain.argmax() == 3
    # p · p / (p + m) with p = (.4 .1 0 .5 0 0) and m = (.1 .4 0 .5 0 0), the upper half of it.
    assert make(first) == pytest.approx(np.array([0.32, 0.02, 0, 0.25, 0, 0]) / 0.59, abs=1e-6)
    assert make(second) == pytest.approx(np.array([0.02, 0.32, 0, 0.25, 0, 0]) / 0.59, abs=1e-6)


def test_others_count_by_their_mean_and_whatever_their_size() -> None:
    others = [
        np.array(one, np.float32) for one in ([2, 0, 0, 2], [0, 0, 300, 100], [-1, -2, -1, 0])
    ]
    found = contrast(np.array([3, -5, 0, 1], np.float32), others)
    # p = (.75 0 0 .25), m = ((.5 0 0 .5) + (0 0 .75 .25)) / 2; the last has nothing above 0.
    assert found == pytest.approx([0.5625, 0, 0, 0.0625 / 0.625], abs=1e-6)


def test_questions_about_the_same_keep_their_relevance() -> None:
    first, second = asked("1", 4, 1, 0, 5, 0, 0), asked("2", 8, 2, 0, 10, 0, 0)
    assert label_maker("contrast", [first, second])(first) == pytest.approx(
        [0.4, 0.1, 0, 0.5, 0, 0]
    )


def test_a_question_about_all_keeps_its_things_before_the_background() -> None:
    """Others rest on single things alone; taking theirs away would leave it the background."""
    whole = asked("all", 3, 3, 3, 3, 1, 1, 1, 1)
    single = [asked(str(n), *(99 if place == n else 0.1 for place in range(8))) for n in range(4)]
    target = label_maker("contrast", [whole, *single])(whole)
    assert target is not None
    assert (target > 0).tolist() == [True] * 4 + [False] * 4


def test_a_question_alone_keeps_its_relevance() -> None:
    alone = asked("1", 1, 3, 0.5, 5)
    strangers = [asked("2", 9, 0, 0, 0, pictures=("b.png",)), asked("3", 1, 2, pictures=("a.png",))]
    unusable = asked("4", -1, 0, 0, -2), asked("5", np.nan, 1, 1, 1)
    make = label_maker("contrast", [alone, *strangers, *unusable])
    assert np.array_equal(make(alone), label(alone.relevance))  # type: ignore[arg-type]
    assert [make(one) for one in unusable] == [None, None]
    assert np.array_equal(contrast(alone.relevance, []), alone.relevance)
