"""Bar charts: a letter under each bar and its value above it."""

import numpy as np
from tasks.glyphs import HEIGHTS, draw_font
from tasks.palette import COLORS, Palette
from tasks.picture import Box, Picture, Question, around
from tasks.sprites import LETTERS
from tasks.text import Style, centred
from tasks.wordings import ask

Bar = tuple[str, str, str]
"""Label, colour, value."""


def sample_chart(rng: np.random.Generator, size: tuple[int, int], held_out: bool) -> Picture:
    """A chart of 2 to 5 bars."""
    height, width = size
    count = int(rng.integers(2, min(5, width // 64) + 1))
    values = (5 + rng.permutation(95)[:count]).tolist()
    letters = [LETTERS[index] for index in np.sort(rng.permutation(len(LETTERS))[:count])]
    names = list(COLORS)
    colors = [names[index] for index in rng.permutation(len(names))[:count]]
    palette = Palette(rng, held_out)
    picture = Picture("chart", size, palette.pale())
    style = Style(draw_font(rng, held_out), HEIGHTS.index(28), palette.ink("black"))
    floor, ceiling = height - 46 - int(rng.integers(0, 30)), 46
    picture.grounds.append((floor, 8, floor + 3, width - 8, (60, 60, 60)))
    slot = (width - 16) / count
    bars: list[Bar] = []
    boxes: list[Box] = []
    for place, (value, letter, color) in enumerate(zip(values, letters, colors, strict=True)):
        middle = 8 + (place + 0.5) * slot + float(rng.uniform(-2, 2))
        half = min(slot * 0.36, 34)
        top = int(floor - (floor - ceiling) * value / 100)
        sides = int(middle - half), int(middle + half)
        picture.grounds.append((top, sides[0], floor, sides[1], palette.shade(color)))
        label, label_box = centred([letter], style, floor + 25, middle)
        number, number_box = centred([str(value)], style, top - 22, middle)
        picture.glyphs += [*label, *number]
        boxes.append(around([label_box, number_box, (top, sides[0], floor, sides[1])]))
        bars.append((letter, color, str(value)))
    ordered = sorted(bars, key=lambda bar: int(bar[2]))
    picture.things = [list(bar) for bar in bars]
    picture.counts = [("bars", len(bars))]
    picture.questions = _questions(rng, bars, ordered, boxes)
    return picture


def _questions(
    rng: np.random.Generator, bars: list[Bar], ordered: list[Bar], boxes: list[Box]
) -> list[Question]:
    """Questions about bars."""
    tallest, shortest = ordered[-1], ordered[0]
    answers = (tallest[2], shortest[2], tallest[1], tallest[0])
    found = [ask(rng, "count", str(len(bars)), [], "bars")]
    drawn = ask(rng, "tallest", "", [], "")
    found.append(Question(drawn.text, answers[drawn.form], "tallest", (), drawn.form))
    for (label, color, value), box in zip(bars, boxes, strict=True):
        found.append(ask(rng, "bar", value, [box], f"bar {label}"))
        found.append(ask(rng, "bar", value, [box], f"the {color} bar"))
        found.append(ask(rng, "bar color", color, [box], f"bar {label}"))
    return found
