"""Sheets of questions about one picture: side by side, what was relevant to each and what was kept for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from foveate.errors import PromptError
from foveate.families.pixels import to_rgb
from foveate.runtime import heatmap, lettering
from foveate.runtime.answer import Visual
from foveate.runtime.heatmap import CAPTION, MARGIN, PAPER, TEXT
from foveate.runtime.lettering import Line

ABREAST = 3
"""How many questions stand side by side; more go on below."""
HEAD, LINES = 18, 4
MUTED = (112, 112, 120)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a picture, and what came of it.

    Attributes:
        question: The user's text.
        answer: The answer's text.
        visual: What the answer says of its visual tokens.
    """

    question: str
    answer: str
    visual: Visual


def draw_questions(picture: Image.Image, asked: Sequence[Asked]) -> Image.Image:
    """Draw a picture, and beside it for each question its relevance and, below, what was kept for it.

    Args:
        picture: The one picture that all questions were about, as it was given to the requests.
        asked: The questions, at least one.

    Returns:
        RGB; each panel at least 448 pixels wide, or 960 high where the picture is narrow.

    Raises:
        PromptError: No question.
        KeepError: A request that ranked nothing, since it kept all tokens.
        ImageError: A request about no picture.
    """
    if not asked:
        raise PromptError("there is no question to draw; give at least one")
    panel = to_rgb(picture)
    panel = panel.resize(heatmap.panel_size(panel), Image.Resampling.LANCZOS)
    slot = max(panel.width, heatmap.LEGEND)
    size = f"{picture.width} × {picture.height} pixels, {asked[0].visual.total} visual tokens"
    blocks = []
    for start in range(0, len(asked), ABREAST):
        several = asked[start : start + ABREAST]
        titles = [_title(one) for one in several]
        tall = max(lettering.height(lines, slot) for lines in titles)
        columns = [
            _column(panel, slot, tall, one, title)
            for one, title in zip(several, titles, strict=True)
        ]
        first = Image.new("RGB", (slot, columns[0].height), PAPER)
        if start == 0:
            first.paste(panel, (0, tall + MARGIN))
            lettering.write_lines(
                first, [Line(size, MUTED)], 0, tall + MARGIN + panel.height + 8, slot
            )
        blocks.append(_abreast([first, *columns], min(len(asked), ABREAST) + 1))
    return heatmap.stacked(blocks)


def _title(asked: Asked) -> list[Line]:
    """What stands above a question's panels."""
    return [
        Line(asked.question, bold=True, size=HEAD, most=LINES),
        Line(f"answer: “{asked.answer}”", most=LINES),
    ]


def _column(
    panel: Image.Image, slot: int, tall: int, asked: Asked, title: Sequence[Line]
) -> Image.Image:
    """A question's title, `tall` pixels, its relevance and what was kept, one under the other."""
    relevance, kept = heatmap.token_maps(asked.visual, 0)
    row = panel.height + CAPTION
    column = Image.new("RGB", (slot, tall + MARGIN + 2 * row), PAPER)
    lettering.write_lines(column, title, 0, 0, slot)
    top = tall + MARGIN
    column.paste(heatmap.under_relevance(panel, relevance), (0, top))
    under = top + panel.height + 8
    lettering.write_lines(column, [Line("relevance", MUTED, size=TEXT)], 0, under, slot)
    heatmap.draw_scale(column, 0, panel.width, under)
    column.paste(heatmap.kept_alone(panel, kept), (0, top + row))
    count = Line(f"{asked.visual.kept} of {asked.visual.total} visual tokens kept", MUTED)
    lettering.write_lines(column, [count], 0, under + row, slot)
    return column


def _abreast(columns: Sequence[Image.Image], places: int) -> Image.Image:
    """Columns side by side, on paper that has room for so many."""
    slot = columns[0].width + MARGIN
    block = Image.new("RGB", (MARGIN + places * slot, columns[0].height + MARGIN), PAPER)
    for place, column in enumerate(columns):
        block.paste(column, (MARGIN + place * slot, MARGIN))
    return block
