"""Baselines: random scores, and shares of smaller pictures."""

import itertools

import numpy as np
import pytest

from foveate.calibration.evaluation.baselines import (
    centre_scores,
    overlap,
    overlap_by_chance,
    random_scores,
    shares,
)
from foveate.families.base import VisualInput
from tests.calibration.boxes import tiled


def test_random_scores_are_those_of_the_name() -> None:
    one, again, other = (random_scores(name, 50).tolist() for name in "aab")
    assert one == again
    assert one != other
    assert random_scores("a", 50, 1).tolist() != one
    assert len(set(one)) == 50
    assert all(0 <= score < 1 for score in one)


def test_shares() -> None:
    assert shares([64, 64], 32) == [16, 16]
    assert shares([100, 1, 1], 3) == [1, 1, 1]
    assert shares([100, 1, 1], 50) == [48, 1, 1]
    assert shares([100, 50], 150) == [100, 50]
    assert shares([1, 1], 1) == [1, 1]
    assert sum(shares([7, 90, 13, 55], 61)) == 61


def test_the_centre_is_that_of_each_picture() -> None:
    tiles = tiled((3, 3), (4, 4))
    visual = VisualInput(
        calls=(), candidates=np.ones(25, bool), picture=tiles.picture, boxes=tiles.boxes
    )
    scores = centre_scores(visual)
    assert np.argsort(-scores, kind="stable")[:5].tolist() == [4, 14, 15, 18, 19]


def test_overlap_by_chance_is_what_all_choices_give() -> None:
    for total, kept in ((6, 3), (7, 2), (5, 5), (4, 1), (6, 5)):
        sets = [np.array(one) for one in itertools.combinations(range(total), kept)]
        mean = np.mean([overlap(one, other) for one in sets for other in sets])
        assert overlap_by_chance(total, kept) == pytest.approx(float(mean))
    assert overlap_by_chance(3000, 750) == pytest.approx(1 / 7, abs=1e-3)
