"""Which parts of its pictures a question is about, and which visual tokens show them."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import DataError
from foveate.families.base import VisualInput

BOXES = ("box", "boxes")
FORM = "[left, top, right, bottom] as fractions of the picture, such as [0.25, 0.1, 0.5, 0.3]"
COVERED = 0.1
"""A token shows a part that covers this share of it, or that it covers this share of."""
CONTACT = 1e-6
"""Overlaps of less than this share of a side are rounding."""


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a picture or of a video's frame.

    Attributes:
        picture: Which of the record's pictures, or of the frames that a model takes of its video, from 0.
        box: Left, top, right and bottom, from 0 to 1.
    """

    picture: int
    box: tuple[float, float, float, float]

    def meets(self, other: "Box") -> bool:
        """Whether both show a part of the same picture."""
        if self.picture != other.picture:
            return False
        one, two = self.box, other.box
        return all(min(one[n + 2], two[n + 2]) - max(one[n], two[n]) > CONTACT for n in (0, 1))


@dataclass(frozen=True, slots=True)
class ShownTokens:
    """The visual tokens that show what a question is about.

    Attributes:
        cover: float64 [N_v], the share of each token that the boxes cover.
        asked: bool [N_v], tokens that show the thing: a tenth of the token is in a box, or a tenth of a
            box in the token; where no token has so much, all that touch.
        touched: bool [N_v], tokens that overlap a box at all.
        middle: The asked token whose centre is nearest to that of a box; -1 where no token is asked.
    """

    cover: NDArray[np.float64]
    asked: NDArray[np.bool_]
    touched: NDArray[np.bool_]
    middle: int

    @classmethod
    def of(cls, visual: VisualInput, boxes: tuple[Box, ...]) -> "ShownTokens":
        """Find them; tokens that may not be dropped are never among them."""
        cover = np.zeros(visual.tokens)
        touched, asked = np.zeros(visual.tokens, bool), np.zeros(visual.tokens, bool)
        away = np.full(visual.tokens, np.inf)
        left, top, right, bottom = visual.boxes.astype(np.float64).T
        areas = (right - left) * (bottom - top)
        seen = visual.candidates & (areas > 0)
        shown = np.unique(visual.picture)
        for one in boxes:
            # A step in time counts as its first frame.
            own = shown[shown <= one.picture]
            here = seen & (visual.picture == own[-1]) if len(own) else np.zeros_like(seen)
            wide = np.minimum(right, one.box[2]) - np.maximum(left, one.box[0])
            high = np.minimum(bottom, one.box[3]) - np.maximum(top, one.box[1])
            meets = here & (wide > CONTACT) & (high > CONTACT)
            shared = np.where(meets, wide * high, 0.0)
            area = (one.box[2] - one.box[0]) * (one.box[3] - one.box[1])
            share = np.divide(shared, areas, out=np.zeros_like(shared), where=areas > 0)
            mostly = meets & ((share >= COVERED) | (shared >= COVERED * area))
            cover, touched = np.maximum(cover, share), touched | meets
            asked |= mostly if mostly.any() else meets
            across = (left + right - one.box[0] - one.box[2]) / 2
            down = (top + bottom - one.box[1] - one.box[3]) / 2
            away = np.where(meets, np.minimum(away, np.hypot(across, down)), away)
        middle = int(np.where(asked, away, np.inf).argmin()) if asked.any() else -1
        return cls(cover, asked, touched, middle)


def read_boxes(document: dict[str, Any], pictures: int | None) -> tuple[Box, ...]:
    """Read the boxes of a question, none where it has none.

    Args:
        document: The question.
        pictures: How many pictures it has; None for a video.

    Raises:
        DataError: What is no box, or does not say of which picture it is.
    """
    given = [key for key in BOXES if key in document]
    if len(given) == 2:
        raise DataError("both 'box' and 'boxes'; give one of them")
    if not given:
        return ()
    (key,) = given
    if key == "box":
        return (_box(document[key], "'box'", pictures),)
    entries = document[key]
    if not isinstance(entries, list) or not entries:
        raise DataError(
            "'boxes' is no list of at least one box; write [[left, top, right, bottom]]"
        )
    return tuple(_box(one, f"'boxes' item {n}", pictures) for n, one in enumerate(entries, start=1))


def _box(entry: Any, name: str, pictures: int | None) -> Box:
    """One box."""
    if not isinstance(entry, dict):
        if pictures != 1:
            raise DataError(
                f"{name} does not say of which picture or frame it is; write "
                '{"picture": 0, "box": [left, top, right, bottom]}'
            )
        return Box(0, _edges(entry, name))
    if set(entry) != {"picture", "box"}:
        raise DataError(
            f'{name} has the keys {", ".join(sorted(entry)) or "none"}; give "picture" and "box"'
        )
    picture = entry["picture"]
    whole = isinstance(picture, int) and not isinstance(picture, bool) and picture >= 0
    if not whole or (pictures is not None and picture >= pictures):
        last = "" if pictures is None else f" to {pictures - 1}"
        raise DataError(
            f"{name}: 'picture' is {json.dumps(picture)[:40]}; give its number, from 0{last}"
        )
    return Box(picture, _edges(entry["box"], name))


def _edges(edges: Any, name: str) -> tuple[float, float, float, float]:
    """Four fractions that leave room between them."""
    numbers = isinstance(edges, list) and len(edges) == 4
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int | float) for n in edges):
        raise DataError(f"{name} is {json.dumps(edges)[:60]}; write {FORM}")
    if not all(0 <= n <= 1 for n in edges):
        raise DataError(
            f"{name} is {json.dumps(edges)[:60]}, not fractions from 0 to 1; divide pixels by the "
            "picture's width and height"
        )
    left, top, right, bottom = map(float, edges)
    if left >= right or top >= bottom:
        raise DataError(f"{name} is {json.dumps(edges)[:60]}, which is empty; write {FORM}")
    return left, top, right, bottom
