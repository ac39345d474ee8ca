"""Boxes: what is read of them, what is refused with its fix, and which tokens show them."""

from typing import Any

import numpy as np
import pytest

from foveate.calibration.boxes import Box, ShownTokens, read_boxes
from foveate.errors import DataError
from foveate.families.base import VisualInput
from tests.calibration.boxes import tiled

BOX = [0.25, 0, 0.5, 1]


def shown(grid: tuple[int, int], *boxes: Box, fixed: tuple[int, ...] = ()) -> ShownTokens:
    tiles = tiled(grid, grid)
    candidates = np.ones(len(tiles.picture), bool)
    candidates[list(fixed)] = False
    visual = VisualInput(calls=(), candidates=candidates, picture=tiles.picture, boxes=tiles.boxes)
    return ShownTokens.of(visual, boxes)


def test_all_forms() -> None:
    assert read_boxes({}, 1) == ()
    assert read_boxes({"box": BOX}, 1) == (Box(0, (0.25, 0.0, 0.5, 1.0)),)
    placed = {"picture": 1, "box": BOX}
    assert [one.picture for one in read_boxes({"boxes": [placed, placed]}, 2)] == [1, 1]
    assert read_boxes({"box": {"picture": 30, "box": BOX}}, None)[0].picture == 30


@pytest.mark.parametrize(
    ("document", "pictures", "words"),
    [
        ({"box": BOX, "boxes": [BOX]}, 1, "both 'box' and 'boxes'"),
        ({"boxes": []}, 1, "no list of at least one box"),
        ({"boxes": BOX}, 1, r"'boxes' item 1 is 0.25; write \[left"),
        ({"box": BOX}, 2, 'which picture .* write {"picture": 0'),
        ({"box": BOX}, None, "which picture or frame"),
        ({"box": {"box": BOX}}, 2, 'has the keys box; give "picture" and "box"'),
        ({"box": {"picture": 2, "box": BOX}}, 2, "'picture' is 2; give its number, from 0 to 1"),
        ({"box": {"picture": True, "box": BOX}}, 2, "'picture' is true"),
        ({"box": {"picture": -1, "box": BOX}}, None, "'picture' is -1"),
        ({"box": [10, 20, 30, 40]}, 1, "not fractions .* divide pixels by the picture's width"),
        ({"box": [0, 0, 1]}, 1, r"is \[0, 0, 1\]; write"),
        ({"box": [0, 0, 1, "1"]}, 1, "write"),
        ({"box": [0, 0, 1, True]}, 1, "write"),
        ({"box": [0, 0, 1, float("nan")]}, 1, "not fractions"),
        ({"box": [0, 0, 1, 10**400]}, 1, "not fractions"),
        ({"box": [0.5, 0, 0.5, 1]}, 1, "which is empty"),
        ({"box": None}, 1, "is null; write"),
    ],
)  # fmt: skip
def test_what_is_no_box(document: dict[str, Any], pictures: int | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_boxes(document, pictures)


def test_tokens_of_a_box() -> None:
    found = shown((4, 4), Box(1, (0.0, 0.0, 0.5, 0.27)))
    assert np.flatnonzero(found.touched).tolist() == [16, 17, 20, 21]
    assert np.flatnonzero(found.asked).tolist() == [16, 17]
    assert found.cover[[16, 20]] == pytest.approx([1, 0.08])
    assert found.middle in (16, 17)


def test_a_box_smaller_than_a_token_and_one_that_is_a_line() -> None:
    dot = shown((4, 4), Box(0, (0.24, 0.24, 0.26, 0.26)))
    assert np.flatnonzero(dot.asked).tolist() == [0, 1, 4, 5]
    line = shown((1, 12), Box(0, (0.0, 0.5, 1.0, 0.505)))
    assert np.flatnonzero(line.asked).tolist() == list(range(12))


def test_tokens_that_stay_are_never_asked_and_neighbours_do_not_touch() -> None:
    found = shown((4, 4), Box(0, (0.0, 0.0, 0.25, 0.25)), fixed=(0,))
    assert not found.asked.any()
    assert found.middle == -1
    assert np.flatnonzero(shown((4, 4), Box(0, (0.0, 0.0, 0.25, 0.25))).touched).tolist() == [0]


def test_a_frame_belongs_to_the_step_that_it_is_in() -> None:
    tiles = tiled((2, 2), (2, 2))
    visual = VisualInput(
        calls=(), candidates=np.ones(8, bool), picture=2 * tiles.picture, boxes=tiles.boxes
    )
    for frame, first in ((0, 0), (1, 0), (2, 4), (3, 4)):
        found = ShownTokens.of(visual, (Box(frame, (0.0, 0.0, 0.4, 0.4)),))
        assert np.flatnonzero(found.asked).tolist() == [first]


def test_which_boxes_meet() -> None:
    one = Box(0, (0.0, 0.0, 0.5, 0.5))
    assert one.meets(Box(0, (0.4, 0.4, 1.0, 1.0)))
    assert not one.meets(Box(0, (0.5, 0.0, 1.0, 0.5)))
    assert not one.meets(Box(1, (0.0, 0.0, 0.5, 0.5)))
