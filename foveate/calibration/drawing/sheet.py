"""Sheets as the paper's figures 2 and 4–10: maps of relevance, and answers from what is kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from foveate.calibration.drawing.entry import RankedTokens, Scale, SheetEntry, result_lines
from foveate.calibration.drawing.film import film_blocks
from foveate.calibration.drawing.words import draw_words, words_height
from foveate.families.pixels import to_rgb
from foveate.runtime import heatmap, lettering
from foveate.runtime.contact_sheet import WIDTH
from foveate.runtime.heatmap import PAPER
from foveate.runtime.lettering import Line
from foveate.terminal import plural

PANEL, HIGH, LEAST = 384, 448, 48
GAP, GUTTER, AIR = 24, 42, 10
HEAD = 22
QUESTION_LINES, ANSWER_LINES = 10, 6
MUTED, RULE = (112, 112, 120), (214, 214, 220)
GUTTER_COLOURS = ((92, 30, 122), (40, 92, 140))


@dataclass(frozen=True, slots=True)
class Cell:
    """A panel, the text under it, and the colours to explain below, with their ends' names."""

    panel: Image.Image
    lines: tuple[Line, ...]
    legend: Scale | None = None


def draw_sheet(entries: Sequence[SheetEntry]) -> Image.Image:
    """Draw questions one under the other: for each picture one row a ranking.

    A row's columns: the picture, the ranking's map, and for each keep the picture with its dropped
    tokens white. Of a video there is a contact sheet for each ranking and keep.

    Args:
        entries: At least one, all with as many keeps.

    Returns:
        RGB.
    """
    columns = 2 + len(entries[0].rankings[0].kept)
    width = GUTTER + columns * (PANEL + GAP)
    if all(entry.record.moving for entry in entries):
        width = WIDTH
    blocks: list[Image.Image] = []
    for number, entry in enumerate(entries):
        blocks.append(_header(entry, width, ruled=number > 0))
        if entry.record.moving:
            blocks += film_blocks(entry)
            continue
        for index in range(len(entry.pictures)):
            picture = to_rgb(entry.pictures[index], index + 1)
            panel = picture.resize(panel_size(picture.size), Image.Resampling.LANCZOS)
            for place, ranking in enumerate(entry.rankings):
                cells = _cells(entry, ranking, index, panel)
                blocks.append(_row(cells, width, ranking.name, GUTTER_COLOURS[place % 2]))
    return heatmap.stacked([*blocks, Image.new("RGB", (width, AIR), PAPER)])


def panel_size(size: tuple[int, int]) -> tuple[int, int]:
    """A panel's (width, height) for a picture's; one much longer than wide is stretched to be seen."""
    scale = min(PANEL / size[0], HIGH / size[1])
    return max(round(size[0] * scale), LEAST), max(round(size[1] * scale), LEAST)


def masked(panel: Image.Image, kept: NDArray[np.bool_]) -> Image.Image:
    """Draw a picture with its dropped parts white, and an outline on the kept side of where they begin.

    Args:
        panel: The picture in RGB.
        kept: bool [rows, columns], which cells of it stay.

    Returns:
        RGB, of the panel's size.
    """
    mask = Image.fromarray((heatmap.enlarged(kept, panel.size) * 255).astype(np.uint8))
    result = Image.new("RGB", panel.size, PAPER)
    result.paste(heatmap.OUTLINE, mask=mask)
    result.paste(panel, mask=mask.filter(ImageFilter.MinFilter(3)))
    return result


def _cells(entry: SheetEntry, ranking: RankedTokens, index: int, panel: Image.Image) -> list[Cell]:
    """The cells of one picture under one ranking."""
    picture, here = entry.pictures[index], entry.visual.picture == index
    facts = f"{picture.width} × {picture.height} pixels, {plural(int(here.sum()), 'token')}"
    facts += ", drawn out of shape" if _stretched(picture.size) else ""
    scale = Scale.of(ranking.scores)
    values = heatmap.token_map(scale.values, entry.visual, index)
    # Smoothing leaves each cell its own value in its middle if it is cut into 3 x 3: a token for the
    # answer among tokens against it would be smoothed away.
    drawn = heatmap.under_relevance(panel, values.repeat(3, axis=0).repeat(3, axis=1), scale.paint)
    told = (Line(f"{ranking.name}: {ranking.meaning}"),)
    cells = [
        Cell(panel, (Line(entry.record.pictures[index].name, most=2), Line(facts, MUTED))),
        Cell(drawn, told, scale),
    ]
    for kept in ranking.kept:
        chosen = entry.chosen(kept)
        left = masked(panel, heatmap.token_map(chosen, entry.visual, index))
        cells.append(Cell(left, result_lines(entry, kept, int(chosen[here].sum()))))
    return cells


def _header(entry: SheetEntry, width: int, *, ruled: bool) -> Image.Image:
    """A question, what its words count, and its answer from all tokens."""
    lines = [
        Line(entry.record.question, bold=True, size=HEAD, most=QUESTION_LINES),
        Line(f"With all {entry.tokens} tokens: “{entry.answer}”", most=ANSWER_LINES),
    ]
    if entry.record.answers:
        expected = " or ".join(f"“{answer}”" for answer in entry.record.answers)
        lines.append(Line(f"Expected: {expected}", MUTED, most=ANSWER_LINES))
    room = width - GAP
    tall = lettering.height(lines, room) + words_height(entry.words, room)
    block = Image.new("RGB", (width, tall + 2 * AIR + GAP), PAPER)
    if ruled:
        ImageDraw.Draw(block).line((GAP // 2, 0, width - GAP // 2, 0), fill=RULE, width=2)
    under = lettering.write_lines(block, lines, GAP // 2, GAP, room)
    draw_words(block, entry.words, GAP // 2, under, room)
    return block


def _row(cells: Sequence[Cell], width: int, name: str, colour: lettering.Colour) -> Image.Image:
    """Cells side by side, after a label that stands upright at their left."""
    tall = max(cell.panel.height for cell in cells)
    below = max(
        lettering.height([*cell.lines, *([Line("")] if cell.legend else [])], PANEL)
        for cell in cells
    )
    block = Image.new("RGB", (width, tall + AIR + below + GAP), PAPER)
    pen = ImageDraw.Draw(block)
    label = Image.new("RGB", (tall, GUTTER - AIR - 4), colour)
    font = lettering.typeface(HEAD, True)
    middle = (label.width / 2, label.height / 2)
    ImageDraw.Draw(label).text(middle, lettering.legible(name, font), PAPER, font=font, anchor="mm")
    block.paste(label.transpose(Image.Transpose.ROTATE_90), (GAP // 2, 0))
    for place, cell in enumerate(cells):
        left = GUTTER + GAP // 2 + place * (PANEL + GAP)
        right, bottom = left + cell.panel.width, cell.panel.height
        block.paste(cell.panel, (left, 0))
        pen.rectangle((left - 1, -1, right, bottom), outline=RULE)
        under = lettering.write_lines(block, cell.lines, left, tall + AIR, PANEL)
        if cell.legend:
            _draw_scale(block, left, under, cell.legend)
    return block


def _draw_scale(block: Image.Image, left: int, top: int, scale: Scale) -> None:
    """A map's colours in a bar, each of its ends named: low, high, and zero where there is one."""
    paint, least, ends = scale.paint, scale.least, scale.ends
    font, pen = lettering.typeface(lettering.BODY), ImageDraw.Draw(block)
    bar = paint(np.tile(np.linspace(least, 1, 160), (12, 1))).round().astype(np.uint8)
    pen.text((left, top), ends[0], MUTED, font=font)
    left += math.ceil(font.getlength(f"{ends[0]} "))
    block.paste(Image.fromarray(bar), (left, top + 4))
    if len(ends) == 3:
        middle = left + bar.shape[1] // 2
        pen.text((middle, top + 9), ends[1], PAPER, font=lettering.typeface(11, True), anchor="mm")
    pen.text((left + bar.shape[1] + 6, top), ends[-1], MUTED, font=font)


def _stretched(size: tuple[int, int]) -> bool:
    """Whether a picture is too long to be drawn in its own shape."""
    width, height = panel_size(size)
    return LEAST in (width, height) and abs(math.log(width * size[1] / height / size[0])) > 0.05
