"""Labels: the top half of relevance as a distribution."""

import numpy as np
import pytest

from foveate.calibration.training.labels import label


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
