"""Contact sheets of videos: every frame with its time, its relevance, and the tokens that were kept of it."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from foveate.errors import ImageError
from foveate.families.pixels import to_rgb
from foveate.runtime import heatmap, lettering
from foveate.runtime.answer import Visual
from foveate.runtime.heatmap import INK, MARGIN, OUTLINE, PAPER
from foveate.runtime.lettering import Line
from foveate.terminal import plural

WIDTH, GAP, SHAPE = 1440, 12, 1.4
"""Pixels of a sheet's width and between its tiles, and how much wider than high it is to be."""
LEAST, MOST, TALLEST = 128, 704, 1.8
"""A tile's least and largest width, and how much higher than wide it may be."""
NARROW = 24
"""A frame so much longer than wide that a side would have fewer pixels is drawn out of shape."""
HEAD, SMALL, BAR, LINE = 20, 13, 7, 24
FRAME_PIXELS = 1 << 18
"""What a frame needs to be drawn: as many pixels as the largest tile has."""
TINT = 0.3
"""How much of relevance's colours is over what was kept."""
MUTED, EMPTY = (112, 112, 120), (226, 226, 231)


@dataclass(frozen=True, slots=True)
class Ranked:
    """What a sheet shows of a video's visual tokens.

    Attributes:
        shown: Which frame, and which part of it, each token shows.
        scaled: float64 [N_v], what their colours say, on the scale of `paint`.
        kept: bool [N_v].
        paint: The colours.
    """

    shown: heatmap.Shown
    scaled: NDArray[np.float64]
    kept: NDArray[np.bool_]
    paint: heatmap.Paint = heatmap.colours


def draw_contact_sheet(
    frames: Sequence[Image.Image],
    visual: Visual,
    seconds: Sequence[float] | None = None,
    title: str | None = None,
) -> Image.Image:
    """Draw a video's frames in a grid, each under its relevance, with its kept tokens outlined.

    Under each frame stands its time and how many of its tokens were kept, as a number and as a bar. Where
    the model sees several frames as one, the first of them is drawn.

    Args:
        frames: The frames that the request was about, in order, of any size.
        visual: What the request's answer says of its visual tokens.
        seconds: When each frame is shown; None numbers them.
        title: What stands above, such as the question.

    Returns:
        RGB, 1440 pixels wide.

    Raises:
        KeepError: The request ranked nothing, since it kept all tokens.
        ImageError: The request had another number of frames, or times that are not one for each.
    """
    ranked = Ranked(visual, heatmap.spread(heatmap.ranked(visual)), heatmap.kept_tokens(visual))
    tiles = frame_grid(frames, ranked, seconds)
    times = "" if seconds is None else f", {span(seconds[0], seconds[-1])}"
    facts = (
        f"{plural(len(frames), 'frame')}{times}: {visual.kept} of {visual.total} visual tokens kept"
    )
    lines = [*([Line(title, bold=True, size=HEAD)] if title else []), Line(facts)]
    return heatmap.stacked([header(lines), tiles, legend(heatmap.colours, 0.0, ("low", "high"))])


def write_contact_sheet(
    path: str | os.PathLike[str],
    frames: Sequence[Image.Image],
    visual: Visual,
    seconds: Sequence[float] | None = None,
    title: str | None = None,
    *,
    force: bool = False,
) -> None:
    """Draw a video into a PNG file, whole or not at all; see `draw_contact_sheet`.

    Raises:
        KeepError: The request ranked nothing, since it kept all tokens.
        ImageError: The request had another number of frames, or times that are not one for each.
        OutputExistsError: The file is there, and `force` was not given.
        OutputError: It could not be written.
    """
    heatmap.check_target(path, force=force)
    heatmap.write_picture(path, draw_contact_sheet(frames, visual, seconds, title), force=force)


def frame_grid(
    frames: Sequence[Image.Image], ranked: Ranked, seconds: Sequence[float] | None = None
) -> Image.Image:
    """Draw the frames in a grid, without a title; see `draw_contact_sheet`.

    Raises:
        ImageError: The tokens are of another number of frames, or times that are not one for each.
    """
    numbers = shown_frames(frames, ranked.shown, seconds)
    columns, slot, size = layout(len(numbers), frames[numbers[0]].size)
    row = size[1] + BAR + LINE + GAP
    sheet = Image.new("RGB", (WIDTH, math.ceil(len(numbers) / columns) * row), PAPER)
    for place, number in enumerate(numbers):
        after = numbers[place + 1] if place + 1 < len(numbers) else len(frames)
        corner = MARGIN + place % columns * (slot + GAP), place // columns * row
        sheet.paste(draw_frame(frames[number], ranked, number, size), corner)
        here = heatmap.tokens_of(ranked.shown, number)
        counts = int(ranked.kept[here].sum()), int(here.sum())
        _draw_caption(
            sheet, (corner[0], corner[1] + size[1]), slot, name(number, after, seconds), counts
        )
    return sheet


def shown_frames(
    frames: Sequence[Image.Image], shown: heatmap.Shown, seconds: Sequence[float] | None
) -> list[int]:
    """The frames that tokens show, the first of those that the model sees as one.

    Raises:
        ImageError: The tokens are of another number of frames, or times that are not one for each.
    """
    numbers: list[int] = np.unique(shown.picture).tolist()
    together = numbers[1] - numbers[0] if len(numbers) > 1 else len(frames)
    if not 0 < len(frames) - numbers[-1] <= together:
        raise ImageError(
            f"the request's video had frames up to number {numbers[-1] + 1} and {len(frames)} were given to "
            "draw; give the frames of the request, in its order"
        )
    if seconds is not None and len(seconds) != len(frames):
        raise ImageError(
            f"{len(frames)} frames and {len(seconds)} times were given; give one time for each frame"
        )
    return numbers


def layout(count: int, frame: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
    """How many tiles stand in a row, how wide each is, and the size of the picture in it.

    Of all numbers of columns that leave tiles wide enough to be read, the one whose grid is nearest to the
    shape of a screen and has few empty places.
    """
    tall = min(frame[1] / frame[0], TALLEST)

    def width(columns: int) -> int:
        return min((WIDTH - 2 * MARGIN + GAP) // columns - GAP, MOST)

    def shape(columns: int) -> float:
        rows = math.ceil(count / columns)
        return (
            columns * (width(columns) + GAP) / (rows * (width(columns) * tall + BAR + LINE + GAP))
        )

    widest = max(n for n in range(1, count + 1) if width(n) >= LEAST or n == 1)
    columns = min(
        range(1, widest + 1), key=lambda n: abs(math.log(shape(n) / SHAPE)) + -count % n / count
    )
    slot = width(columns)
    scale = min(slot / frame[0], slot * TALLEST / frame[1])
    size = max(round(frame[0] * scale), NARROW), max(round(frame[1] * scale), NARROW)
    return columns, slot, size


def draw_frame(
    frame: Image.Image, ranked: Ranked, number: int, size: tuple[int, int]
) -> Image.Image:
    """One frame under its relevance, with a line around its kept tokens, at a size (width, height)."""
    panel = to_rgb(frame, number + 1).resize(size, Image.Resampling.LANCZOS)
    values = heatmap.token_map(ranked.scaled, ranked.shown, number)
    kept = heatmap.token_map(ranked.kept, ranked.shown, number)
    if (ranked.scaled < 0).any():
        # Smoothing leaves each cell its own value in its middle if it is cut into 3 x 3: a token for
        # the answer among tokens against it would be smoothed away.
        values = values.repeat(3, axis=0).repeat(3, axis=1)
    coloured = heatmap.under_relevance(panel, values, ranked.paint)
    mask = Image.fromarray((heatmap.enlarged(kept, size) * 255).astype(np.uint8))
    coloured.paste(Image.blend(panel, coloured, TINT), mask=mask)
    return heatmap.outlined(coloured, kept)


def name(number: int, after: int, seconds: Sequence[float] | None) -> str:
    """What a tile is called: the times, or else the numbers, of the frames from `number` to before `after`."""
    last = after - 1
    if seconds is None:
        return f"frames {number + 1}–{after}" if last > number else f"frame {number + 1}"
    return span(seconds[number], seconds[last])


def span(begin: float, end: float) -> str:
    """Two times in a film, or one where they are the same."""
    first, last = moment(begin), moment(end)
    return f"{first} s" if first == last else f"{first}–{last} s"


def moment(seconds: float) -> str:
    """A time in a film, such as 7.5 or 1:07.5."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    if minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02}:{rest / 10:04.1f}"
    return f"{minutes}:{rest / 10:04.1f}" if minutes else f"{rest / 10:.1f}"


def header(lines: Sequence[Line]) -> Image.Image:
    """Lines of text over the whole width of a sheet."""
    room = WIDTH - 2 * MARGIN
    block = Image.new("RGB", (WIDTH, lettering.height(lines, room) + 2 * MARGIN), PAPER)
    lettering.write_lines(block, lines, MARGIN, MARGIN, room)
    return block


def legend(paint: heatmap.Paint, least: float, ends: tuple[str, str]) -> Image.Image:
    """What the colours, the line and the bar of a tile mean.

    Args:
        paint: The colours.
        least: The lowest value on their scale.
        ends: What the lowest and the highest value are called.
    """
    block = Image.new("RGB", (WIDTH, LINE + MARGIN), PAPER)
    pen, font = ImageDraw.Draw(block), lettering.typeface(SMALL)
    left = float(MARGIN)

    def write(text: str) -> None:
        nonlocal left
        pen.text((left, 0), lettering.legible(text, font), MUTED, font=font)
        left += font.getlength(text) + 8

    bar = paint(np.tile(np.linspace(least, 1, 120), (10, 1))).round().astype(np.uint8)
    write(f"relevance: {ends[0]}")
    block.paste(Image.fromarray(bar), (round(left), 3))
    left += bar.shape[1] + 8
    write(ends[1])
    left += 2 * MARGIN
    sample = Image.new("RGB", (22, 12), EMPTY)
    block.paste(heatmap.outlined(sample, np.ones((1, 1), np.bool_)), (round(left), 2))
    left += 30
    write("kept, in the frame's own colours")
    left += 2 * MARGIN
    pen.rectangle((left, 4, left + 40, 4 + BAR - 1), fill=EMPTY)
    pen.rectangle((left, 4, left + 14, 4 + BAR - 1), fill=OUTLINE)
    left += 48
    write("how many of a frame's tokens were kept")
    return block


def _draw_caption(
    sheet: Image.Image, corner: tuple[int, int], width: int, text: str, counts: tuple[int, int]
) -> None:
    """A bar of how many of a frame's tokens were kept, and under it the frame's name and that number."""
    (left, top), (kept, total) = corner, counts
    pen, font = ImageDraw.Draw(sheet), lettering.typeface(SMALL)
    top += 3
    pen.rectangle((left, top, left + width - 1, top + BAR - 1), fill=EMPTY)
    if kept:
        filled = max(round(width * kept / total), 2)
        pen.rectangle((left, top, left + filled - 1, top + BAR - 1), fill=OUTLINE)
    top += BAR + 2
    pen.text((left, top), lettering.legible(text, font), INK, font=font)
    amount = f"{kept} of {total}"
    if font.getlength(f"{text}  {amount}") > width:
        amount = str(kept)
    pen.text((left + width, top), amount, MUTED, font=font, anchor="ra")
