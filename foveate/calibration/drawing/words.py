"""The words of a question on a sheet, each on a ground as dark as what it counts in the ranking."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from foveate.runtime import lettering
from foveate.runtime.heatmap import INK, PAPER

GROUND = (240, 138, 36)
"""The colour behind the word that counts most."""
AIR = 3
LINE = 2 * lettering.BODY


@dataclass(frozen=True, slots=True)
class Word:
    """A token of the instruction.

    Attributes:
        text: Its letters, with the space before them.
        weight: What it counts; all of an instruction's sum up to 1.
    """

    text: str
    weight: float


def words_height(words: Sequence[Word], room: int) -> int:
    """How many pixels words take in lines of `room` pixels."""
    return LINE * (1 + max((line for line, _, _ in _placed(words, room)), default=-1))


def draw_words(block: Image.Image, words: Sequence[Word], left: int, top: int, room: int) -> None:
    """Draw words one after the other, in lines of `room` pixels."""
    font, pen = lettering.typeface(lettering.BODY), ImageDraw.Draw(block)
    most = max((word.weight for word in words), default=1)
    for word, (line, start, width) in zip(words, _placed(words, room), strict=True):
        share = word.weight / most if most > 0 else 0.0
        ground = np.array(PAPER) + (np.array(GROUND) - np.array(PAPER)) * share
        x, y = left + start, top + line * LINE
        colour = (int(ground[0]), int(ground[1]), int(ground[2]))
        pen.rectangle((x, y, x + width - 1, y + LINE - 2 * AIR), fill=colour)
        pen.text((x + AIR, y + AIR), lettering.legible(word.text.strip(), font), INK, font=font)


def _placed(words: Sequence[Word], room: int) -> list[tuple[int, int, int]]:
    """Each word's line, where it begins in that and how wide it is; parts of one word touch."""
    font, placed, line, begin = lettering.typeface(lettering.BODY), [], 0, 0
    for word in words:
        width = int(font.getlength(lettering.legible(word.text.strip(), font))) + 2 * AIR
        gap = 2 * AIR if word.text[:1].isspace() else 1
        if begin and begin + gap + width > room:
            line, begin = line + 1, 0
        begin += gap if begin else 0
        placed.append((line, begin, width))
        begin += width
    return placed
