"""Lines of text, each in an ink of its own on a light ground."""

import numpy as np
from tasks.glyphs import draw_font
from tasks.palette import COLORS, Palette
from tasks.picture import Picture
from tasks.plates import WORDS
from tasks.text import Style, centred, largest, width
from tasks.wordings import ask

LINE = 42
"""The least height of a line in pixels."""
INKS = tuple(name for name in COLORS if name != "yellow")


def sample_lines(
    rng: np.random.Generator, size: tuple[int, int], held_out: bool, most: int = 7
) -> Picture:
    """Lines of two words, as many as the picture holds, in different inks."""
    height, wide = size
    count = min(most, height // LINE)
    palette = Palette(rng, held_out)
    picture = Picture("lines", size, palette.pale())
    font = draw_font(rng, held_out)
    for number, index in enumerate(rng.permutation(len(INKS))[:count].tolist()):
        color = INKS[index]
        text = " ".join(WORDS[place] for place in rng.integers(len(WORDS), size=2).tolist())
        top, bottom = number * height / count, (number + 1) * height / count
        fits = largest([text], font, (top + 6, 6, bottom - 6, wide - 6))
        style = Style(font, max(0, fits - int(rng.integers(0, 2))), palette.shade(color))
        slack = (wide - width(text, style)) / 2 - 6
        middle = wide / 2 + float(rng.uniform(-1, 1)) * max(0.0, slack)
        glyphs, box = centred([text], style, (top + bottom) / 2 + float(rng.uniform(-3, 3)), middle)
        picture.glyphs += glyphs
        picture.things.append([color, text])
        picture.questions.append(ask(rng, "line", text, [box], f"{color} line"))
    picture.counts = [("lines", count)]
    picture.questions.append(ask(rng, "count", str(count), [], "lines"))
    return picture
