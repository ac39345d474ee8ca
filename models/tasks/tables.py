"""Tables whose rows (or columns) have a ground each and a number in every cell."""

import numpy as np
from tasks.glyphs import HEIGHTS, draw_font
from tasks.palette import COLORS, INKS, Palette, readable
from tasks.picture import Box, Picture
from tasks.text import Style, centred
from tasks.wordings import ask

STRIPE = 42
"""The least height of a row in pixels."""
COLUMN = 56
"""The least width of a column in pixels."""


def sample_table(
    rng: np.random.Generator, size: tuple[int, int], held_out: bool, most: int = 8
) -> Picture:
    """A table of 3 to 8 stripes of different grounds that fill the picture, 3 or 4 cells each."""
    upright = bool(rng.random() < 0.3)
    along, across = (size[1], size[0]) if upright else size
    stripes = min(most, along // (COLUMN if upright else STRIPE))
    cells = int(rng.integers(3, 5))
    palette = Palette(rng, held_out)
    picture = Picture("table", size, palette.pale())
    font = draw_font(rng, held_out)
    names = [list(COLORS)[index] for index in rng.permutation(len(COLORS))[:stripes]]
    height = int(rng.integers(HEIGHTS.index(18), HEIGHTS.index(22 if upright else 25) + 1))
    word = "column" if upright else "row"
    for number, color in enumerate(names):
        ground = palette.shade(color)
        inks = [palette.ink(ink) for ink in INKS]
        ink = next(ink for ink in (inks[int(rng.integers(2))], *inks) if readable(ground, ink))
        start, end = (round(part * along / stripes) for part in (number, number + 1))
        edges = (0, start, size[0], end) if upright else (start, 0, end, size[1])
        picture.grounds.append((*edges, ground))
        said: list[str] = []
        boxes: list[Box] = []
        for cell in range(cells):
            text = str(int(rng.integers(10, 100)))
            place = ((cell + 0.5) * across / cells, (start + end) / 2)
            row, column = place if upright else place[::-1]
            shift = rng.uniform(-3, 3, size=2)
            glyphs, box = centred(
                [text], Style(font, height, ink), row + shift[0], column + shift[1]
            )
            picture.glyphs += glyphs
            said.append(text)
            boxes.append(box)
        answer = " ".join(said)
        picture.things.append([color, answer])
        picture.questions.append(ask(rng, "table", answer, boxes, f"{color} {word}"))
    picture.counts = [(f"{word}s", stripes), ("numbers", stripes * cells)]
    for what, count in picture.counts:
        picture.questions.append(ask(rng, "count", str(count), [], what))
    return picture
