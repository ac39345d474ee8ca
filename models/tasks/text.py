"""Setting text: which glyph tiles go where."""

from dataclasses import dataclass

from tasks.glyphs import CHARACTERS, GLYPH, HEIGHTS, bank, glyph_tile
from tasks.picture import RGB, Box


@dataclass(frozen=True, slots=True)
class Style:
    """How text is set.

    Attributes:
        font: Its number.
        height: The number of a capital's height.
        ink: RGB.
        spacing: Pixels between characters beside the font's own.
    """

    font: int
    height: int
    ink: RGB
    spacing: float = 1.0


Glyphs = list[tuple[int, int, int, RGB]]


def width(text: str, style: Style) -> float:
    """How wide a line is in pixels."""
    return sum(_advances(text, style)) - style.spacing


def largest(lines: list[str], font: int, box: Box, spacing: float = 1.0) -> int:
    """The number of the largest height at which lines fit a box; 0 where none does."""
    top, left, bottom, right = box
    for number in range(len(HEIGHTS) - 1, 0, -1):
        style = Style(font, number, (0, 0, 0), spacing)
        tall = len(lines) * HEIGHTS[number] * 1.3 - HEIGHTS[number] * 0.3
        if tall <= bottom - top and max(width(line, style) for line in lines) <= right - left:
            return number
    return 0


def centred(lines: list[str], style: Style, row: float, column: float) -> tuple[Glyphs, Box]:
    """Lines around a point in pixels: their glyphs and the box of the text."""
    pitch = HEIGHTS[style.height] * 1.3
    glyphs: Glyphs = []
    for number, line in enumerate(lines):
        middle = row + (number - (len(lines) - 1) / 2) * pitch
        glyphs += _line(line, style, middle, column - width(line, style) / 2)
    tall = HEIGHTS[style.height] / 2 + (len(lines) - 1) / 2 * pitch
    half = max(width(line, style) for line in lines) / 2
    return glyphs, (row - tall, column - half, row + tall, column + half)


def _line(line: str, style: Style, middle: float, left: float) -> Glyphs:
    """One line whose capitals' middles are at row `middle`, from column `left` on."""
    glyphs: Glyphs = []
    pen = left
    for character, advance in zip(line, _advances(line, style), strict=True):
        if character != " ":
            tile = glyph_tile(style.font, style.height, character)
            middle_column = pen + (advance - style.spacing) / 2
            corner = (round(middle - GLYPH / 2), round(middle_column - GLYPH / 2))
            glyphs.append((tile, *corner, style.ink))
        pen += advance
    return glyphs


def _advances(line: str, style: Style) -> list[float]:
    """How far each character moves the pen."""
    first = (style.font * len(HEIGHTS) + style.height) * len(CHARACTERS)
    widths = bank().widths
    space = HEIGHTS[style.height] * 0.5
    return [
        (space if character == " " else float(widths[first + CHARACTERS.index(character)]))
        + style.spacing
        for character in line
    ]
