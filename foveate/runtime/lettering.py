"""Text on sheets: wrapped to a width, in a font that has most letters."""

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from foveate.runtime.heatmap import INK

BODY = 16
LINES = 4
PLAIN = {"θ": "theta", "⁰": "0", "×": "x", "–": "-", "“": '"', "”": '"', "…": "..."}

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Line:
    """A piece of text that may wrap."""

    text: str
    colour: Colour = INK
    bold: bool = False
    size: int = BODY
    most: int = LINES


def write_lines(block: Image.Image, lines: Sequence[Line], left: int, top: int, room: int) -> int:
    """Write lines, wrapped to `room` pixels; returns where the next one would begin."""
    pen = ImageDraw.Draw(block)
    for line in lines:
        font = typeface(line.size, line.bold)
        for piece in wrapped(line.text, font, room, line.most):
            pen.text((left, top), piece, line.colour, font=font)
            top += line.size * 3 // 2
    return top


def height(lines: Sequence[Line], room: int) -> int:
    """How many pixels lines take once wrapped."""
    fonts = [typeface(line.size, line.bold) for line in lines]
    return sum(
        len(wrapped(line.text, font, room, line.most)) * (line.size * 3 // 2)
        for line, font in zip(lines, fonts, strict=True)
    )


def wrapped(text: str, font: Font, room: float, most: int) -> list[str]:
    """Text as at most `most` lines of at most `room` pixels; what is cut ends in …."""
    lines: list[str] = []
    for paragraph in text.strip().splitlines() or [""]:
        line = ""
        for word in legible(paragraph, font).split():
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) > room and line:
                lines.append(line)
                joined = word
            while font.getlength(joined) > room and len(joined) > 1:
                fits = next(
                    n for n in range(len(joined) - 1, 0, -1)
                    if n == 1 or font.getlength(joined[:n]) <= room
                )  # fmt: skip
                lines.append(joined[:fits])
                joined = joined[fits:]
            line = joined
        lines.append(line)
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(f"{last}…") > room:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}…"]


def legible(text: str, font: Font) -> str:
    """Text in the font's own letters; what it lacks is written as its code, such as \\u4e2d."""
    return "".join(sign if _has(sign, font) else _spelled(sign) for sign in text)


def _spelled(sign: str) -> str:
    """A sign in ASCII."""
    if sign.isspace():
        return " "
    return PLAIN.get(sign) or sign.encode("unicode_escape").decode("ascii")


@functools.cache
def _has(sign: str, font: Font) -> bool:
    """Whether a font has a sign, and not the box that stands for all it lacks."""
    if sign == " ":
        return True
    return sign.isprintable() and bytes(font.getmask(sign)) != bytes(font.getmask("\uffff"))


@functools.cache
def typeface(size: int, bold: bool = False) -> Font:
    """DejaVu Sans where matplotlib brings it; else Pillow's own, which has little beyond ASCII."""
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        fonts = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
        file = fonts / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)
