"""Baselines: random scores, and shares of smaller pictures."""

from foveate.calibration.evaluation.baselines import random_scores, shares


def test_random_scores_are_those_of_the_name() -> None:
    one, again, other = (random_scores(name, 50).tolist() for name in "aab")
    assert one == again
    assert one != other
    assert len(set(one)) == 50
    assert all(0 <= score < 1 for score in one)


def test_shares() -> None:
    assert shares([64, 64], 32) == [16, 16]
    assert shares([100, 1, 1], 3) == [1, 1, 1]
    assert shares([100, 1, 1], 50) == [48, 1, 1]
    assert shares([100, 50], 150) == [100, 50]
    assert shares([1, 1], 1) == [1, 1]
    assert sum(shares([7, 90, 13, 55], 61)) == 61
