"""Examples: training and validation share no picture."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from foveate.calibration.training.examples import Example, prepare, split
from foveate.errors import DataError
from tests.calibration.training.scenes import BY_RELEVANCE, scenes


def test_no_picture_is_on_both_sides() -> None:
    """Not even through a sample with two pictures; and a picture keeps its side as others come."""
    samples = scenes(200)
    samples[10] = replace(samples[10], pictures=("p5.png", "p77.png"))
    few = prepare(samples[:120], "mean", "none", BY_RELEVANCE).all
    many = prepare(samples, "mean", "none", BY_RELEVANCE).all
    sides = split(few, 0.2, 0), split(many, 0.2, 0)
    for training, validation in sides:
        assert not pictures(training) & pictures(validation)
        assert 0.1 < len(validation) / (len(training) + len(validation)) < 0.3
    joined = {"p5.png", "p77.png"}
    assert pictures(sides[0][1]) - joined == (pictures(sides[1][1]) & pictures(few)) - joined
    assert any(joined <= pictures(side) for side in sides[1])
    assert pictures(split(many, 0.2, 1)[1]) != pictures(sides[1][1])


def pictures(examples: Sequence[Example]) -> set[str]:
    return {picture for example in examples for picture in example.pictures}


def test_both_sides_have_a_picture() -> None:
    examples = prepare(scenes(4), "mean", "none", BY_RELEVANCE).all
    for share in (0.001, 0.999):
        assert [len(side) for side in split(examples, share, 0)] == [2, 2]
    with pytest.raises(DataError, match="one picture"):
        split(examples[:2], 0.5, 0)
