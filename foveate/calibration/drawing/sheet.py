"""Sheets as the paper's figures 2 and 4–10: maps of relevance, and answers from what is kept.

Relevance by Eq. 1 is signed: a token can speak against the answer. Tokens are ranked by the signed
value, so those go first. Maps show zero dark, what is above it in warm colours and what is below it in
cold ones, both on one scale; scores that are never below zero have the warm colours alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from foveate.calibration.dataset import Record
from foveate.calibration.drawing import text
from foveate.calibration.drawing.text import Line
from foveate.calibration.drawing.words import Word, draw_words, words_height
from foveate.families.pixels import to_rgb
from foveate.runtime import heatmap
from foveate.runtime.heatmap import PAPER
from foveate.terminal import plural

PANEL, HIGH, LEAST = 384, 448, 48
GAP, GUTTER, AIR = 24, 42, 10
HEAD = 22
SIGNED_MIDDLE = 0.1
QUESTION_LINES, ANSWER_LINES = 10, 6
MUTED, RULE, SAME, OTHER = (112, 112, 120), (214, 214, 220), (22, 120, 60), (196, 40, 28)
GUTTER_COLOURS = ((92, 30, 122), (40, 92, 140))

# From the colour of zero to a blue less light than the warm end, so that the eye goes to that first.
COLD = np.array([(22, 18, 70), (20, 48, 112), (30, 92, 156), (72, 144, 192)], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """Some of a question's visual tokens, and the answer from these alone.

    Attributes:
        keep: How many, a ratio or a count.
        indices: int64 [K], ordinals of the kept tokens, ascending.
        answer: The model's answer from these tokens.
        same: Whether it is, token for token, the answer from all.
        overlap: Share of these tokens that R_v keeps too; None for R_v itself.
    """

    keep: float | int
    indices: NDArray[np.int64]
    answer: str
    same: bool
    overlap: float | None


@dataclass(frozen=True, slots=True)
class RankedTokens:
    """One ranking of a question's visual tokens.

    Attributes:
        name: What the paper calls it, such as R_v.
        meaning: What it is, in a few words.
        scores: float32 [N_v], what its map shows.
        kept: What is left at each ratio or count.
    """

    name: str
    meaning: str
    scores: NDArray[np.float32]
    kept: tuple[KeptAnswer, ...]


@dataclass(frozen=True, slots=True)
class SheetEntry:
    """A question with its pictures, its answers and the rankings of its visual tokens.

    Attributes:
        record: The question, with its right answers where they are known.
        pictures: Its pictures, in order.
        visual: Which part of which picture each visual token shows.
        answer: The model's answer from all tokens.
        rankings: All with the same keeps.
        words: The question's tokens, with what each counts in the last ranking.
    """

    record: Record
    pictures: tuple[Image.Image, ...]
    visual: heatmap.Shown
    answer: str
    rankings: tuple[RankedTokens, ...]
    words: tuple[Word, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of visual tokens of all pictures together."""
        return len(self.visual.picture)


@dataclass(frozen=True, slots=True)
class Cell:
    """A panel, the text under it, and the colours to explain below, with their ends' names."""

    panel: Image.Image
    lines: tuple[Line, ...]
    legend: tuple[heatmap.Paint, float, tuple[str, ...]] | None = None


def draw_sheet(entries: Sequence[SheetEntry]) -> Image.Image:
    """Draw questions one under the other: for each picture one row a ranking.

    A row's columns: the picture, the ranking's map, and for each keep the picture with its dropped
    tokens white.

    Args:
        entries: At least one, all with as many keeps.

    Returns:
        RGB.
    """
    columns = 2 + len(entries[0].rankings[0].kept)
    width = GUTTER + columns * (PANEL + GAP)
    blocks: list[Image.Image] = []
    for number, entry in enumerate(entries):
        blocks.append(_header(entry, width, ruled=number > 0))
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


def signed_spread(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale scores [N_v] to float64 from -1 to 1: signs stay, and both sides are on the scale of `spread`."""
    values = np.nan_to_num(scores.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    sizes = heatmap.spread(np.append(np.abs(values), 0.0), SIGNED_MIDDLE)[:-1]
    return np.asarray(np.sign(values) * sizes)


def signed_colours(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The colours, RGB from 0 to 255, of values from -1 (cold) over 0 (dark) to 1 (warm)."""
    warm = heatmap.COLOURS
    stops = np.concatenate([np.linspace(-1, 0, len(COLD)), np.linspace(0, 1, len(warm))[1:]])
    ramp = np.concatenate([COLD[::-1], warm[1:]])
    return heatmap.ramped(values, stops, ramp)


def _cells(entry: SheetEntry, ranking: RankedTokens, index: int, panel: Image.Image) -> list[Cell]:
    """The cells of one picture under one ranking."""
    picture, here = entry.pictures[index], entry.visual.picture == index
    facts = f"{picture.width} × {picture.height} pixels, {plural(int(here.sum()), 'token')}"
    facts += ", drawn out of shape" if _stretched(picture.size) else ""
    signed = bool((ranking.scores < 0).any())
    paint = signed_colours if signed else heatmap.colours
    scaled = (signed_spread if signed else heatmap.spread)(ranking.scores)
    ends = ("against", "0", "for the answer") if signed else ("low", "high")
    values = heatmap.token_map(scaled, entry.visual, index)
    # Smoothing leaves each cell its own value in its middle if it is cut into 3 x 3: a token for the
    # answer among tokens against it would be smoothed away.
    drawn = heatmap.under_relevance(panel, values.repeat(3, axis=0).repeat(3, axis=1), paint)
    told = (Line(f"{ranking.name}: {ranking.meaning}"),)
    cells = [
        Cell(panel, (Line(entry.record.pictures[index].name, most=2), Line(facts, MUTED))),
        Cell(drawn, told, (paint, -1.0 if signed else 0.0, ends)),
    ]
    for kept in ranking.kept:
        chosen = np.zeros(entry.tokens, dtype=np.bool_)
        chosen[kept.indices] = True
        left = masked(panel, heatmap.token_map(chosen, entry.visual, index))
        cells.append(Cell(left, _result(entry, kept, int(chosen[here].sum()))))
    return cells


def _result(entry: SheetEntry, kept: KeptAnswer, here: int) -> tuple[Line, ...]:
    """The text under one keep, of which `here` tokens are in the picture above."""
    share = f"top {100 * kept.keep:g} %" if isinstance(kept.keep, float) else "top"
    among = f", {here} here" if len(entry.pictures) > 1 else ""
    shared = "" if kept.overlap is None else f"{100 * kept.overlap:.0f} % of them kept by R_v too"
    word, colour = ("same answer", SAME) if kept.same else ("another answer", OTHER)
    return (
        Line(f"{share}: {len(kept.indices)} of {entry.tokens} tokens{among}", bold=True),
        Line(f"{word}: “{kept.answer}”", colour),
        *([Line(shared, MUTED)] if shared else []),
    )


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
    tall = text.height(lines, room) + words_height(entry.words, room)
    block = Image.new("RGB", (width, tall + 2 * AIR + GAP), PAPER)
    if ruled:
        ImageDraw.Draw(block).line((GAP // 2, 0, width - GAP // 2, 0), fill=RULE, width=2)
    under = text.write_lines(block, lines, GAP // 2, GAP, room)
    draw_words(block, entry.words, GAP // 2, under, room)
    return block


def _row(cells: Sequence[Cell], width: int, name: str, colour: text.Colour) -> Image.Image:
    """Cells side by side, after a label that stands upright at their left."""
    tall = max(cell.panel.height for cell in cells)
    below = max(
        text.height([*cell.lines, *([Line("")] if cell.legend else [])], PANEL) for cell in cells
    )
    block = Image.new("RGB", (width, tall + AIR + below + GAP), PAPER)
    pen = ImageDraw.Draw(block)
    label = Image.new("RGB", (tall, GUTTER - AIR - 4), colour)
    font = text.typeface(HEAD, True)
    middle = (label.width / 2, label.height / 2)
    ImageDraw.Draw(label).text(middle, text.legible(name, font), PAPER, font=font, anchor="mm")
    block.paste(label.transpose(Image.Transpose.ROTATE_90), (GAP // 2, 0))
    for place, cell in enumerate(cells):
        left = GUTTER + GAP // 2 + place * (PANEL + GAP)
        right, bottom = left + cell.panel.width, cell.panel.height
        block.paste(cell.panel, (left, 0))
        pen.rectangle((left - 1, -1, right, bottom), outline=RULE)
        under = text.write_lines(block, cell.lines, left, tall + AIR, PANEL)
        if cell.legend:
            _draw_scale(block, left, under, *cell.legend)
    return block


def _draw_scale(
    block: Image.Image, left: int, top: int, paint: heatmap.Paint, least: float, ends: Sequence[str]
) -> None:
    """A map's colours in a bar, each of `ends` named: low, high, and zero where there is one."""
    font, pen = text.typeface(text.BODY), ImageDraw.Draw(block)
    bar = paint(np.tile(np.linspace(least, 1, 160), (12, 1))).round().astype(np.uint8)
    pen.text((left, top), ends[0], MUTED, font=font)
    left += math.ceil(font.getlength(f"{ends[0]} "))
    block.paste(Image.fromarray(bar), (left, top + 4))
    if len(ends) == 3:
        middle = left + bar.shape[1] // 2
        pen.text((middle, top + 9), ends[1], PAPER, font=text.typeface(11, True), anchor="mm")
    pen.text((left + bar.shape[1] + 6, top), ends[-1], MUTED, font=font)


def _stretched(size: tuple[int, int]) -> bool:
    """Whether a picture is too long to be drawn in its own shape."""
    width, height = panel_size(size)
    return LEAST in (width, height) and abs(math.log(width * size[1] / height / size[0])) > 0.05
