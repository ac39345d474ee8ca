"""Rankings: the top k, its ties, and overlaps of two rankings."""

import numpy as np
import pytest

from foveate.calibration.ranking import chance, overlap, overlap_at_ratios, top


def test_top_takes_the_first_of_equals_in_order() -> None:
    scores = np.array([0.1, -3, 0.5, 0.5, 0.1, 0.5], dtype=np.float32)
    assert top(scores, 2).tolist() == [2, 3]
    assert top(scores, 4).tolist() == [0, 2, 3, 5]
    scores = np.array([1, 3, 1, 3, 1], dtype=np.float32)
    assert [top(scores, count).tolist() for count in (1, 3, 4)] == [
        [1],
        [0, 1, 3],
        [0, 1, 2, 3],
    ]
    assert top(scores, 3).dtype == np.int64


def test_overlap_is_the_share_of_the_top_k_in_common() -> None:
    truth = np.arange(20.0)
    assert overlap_at_ratios(truth, truth).tolist() == [1, 1, 1]
    assert overlap_at_ratios(-truth, truth).tolist() == [0, 0, 0]
    swapped = truth.copy()
    swapped[[19, 10]] = swapped[[10, 19]]
    assert overlap_at_ratios(swapped, truth).tolist() == [1, 4 / 5, 1 / 2]
    assert overlap(swapped, truth, [1, 2, 20]).tolist() == [0, 1 / 2, 1]


def test_overlap_takes_the_first_of_equals() -> None:
    flat = np.zeros(20)
    assert overlap_at_ratios(flat, -np.arange(20.0)).tolist() == [1, 1, 1]
    assert overlap_at_ratios(flat, np.arange(20.0)).tolist() == [0, 0, 0]


def test_chance_is_what_random_rankings_overlap() -> None:
    random = np.random.default_rng(0)
    truth = np.arange(33.0)
    found = np.mean([overlap_at_ratios(random.random(33), truth) for _ in range(4000)], axis=0)
    assert found == pytest.approx(chance(33), abs=0.01)
