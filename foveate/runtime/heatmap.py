"""Pictures of a request's attention: what was relevant to the prompt, and which tokens were kept."""

import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from foveate.atomic_write import check_file, replace_file
from foveate.errors import ImageError, KeepError, OutputError
from foveate.families.pixels import to_rgb
from foveate.runtime.answer import Visual

LEAST_WIDTH, MOST_WIDTH, MOST_HEIGHT = 448, 720, 960
MARGIN, CAPTION, TEXT, LEGEND = 16, 34, 16, 360
INK, PAPER, OUTLINE = (40, 40, 44), (255, 255, 255), (232, 62, 40)
LIGHT, DARK = (255, 255, 255), (24, 20, 40)
FADED, FADE, SHADE, GLOW = 222, 0.84, 0.65, 0.2

# Dark to light: lightness grows evenly, so the order is seen without the colours too.
COLOURS = np.array(
    [(22, 18, 70), (92, 30, 122), (170, 48, 116), (226, 92, 78), (248, 164, 62), (250, 244, 170)],
    dtype=np.float64,
)

CELL = TypeVar("CELL", bound=np.generic)


class Shown(Protocol):
    """Which part of which picture each visual token shows; see `VisualInput`."""

    @property
    def picture(self) -> NDArray[np.int64]:
        """int64 [N_v]."""
        ...

    @property
    def boxes(self) -> NDArray[np.float32]:
        """float32 [N_v, 4]: left, top, right, bottom, from 0 to 1."""
        ...


Paint = Callable[[NDArray[np.floating]], NDArray[np.float64]]


def draw_heatmap(picture: Image.Image, visual: Visual, index: int = 0) -> Image.Image:
    """Draw one picture three times: as it is, under its relevance, and what was kept of it.

    Args:
        picture: The picture as it was given to the request.
        visual: What the request's answer says of its visual tokens.
        index: Which of the request's pictures it is.

    Returns:
        RGB; each panel at least 448 pixels wide, or 960 high where the picture is narrow.

    Raises:
        KeepError: The request ranked nothing, since it kept all tokens.
        ImageError: The request had no such picture.
    """
    relevance, kept = token_maps(visual, index)
    small = to_rgb(picture, index + 1)
    original = small.resize(panel_size(small), Image.Resampling.LANCZOS)
    here = visual.picture == index
    count = f"{int(here[visual.indices].sum())} of {int(here.sum())} tokens kept"
    number = f"picture {index + 1}: " if visual.pictures > 1 else ""
    panels = (
        (original, f"{number}{picture.width} x {picture.height} pixels"),
        (under_relevance(original, relevance), "relevance to the prompt"),
        (kept_alone(original, kept), f"{number}{count}"),
    )
    width, height = original.size
    slot = max(width, LEGEND)
    sheet = Image.new("RGB", (3 * slot + 4 * MARGIN, height + 2 * MARGIN + CAPTION), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (panel, caption) in enumerate(panels):
        left = MARGIN + place * (slot + MARGIN)
        sheet.paste(panel, (left, MARGIN))
        pen.text((left, MARGIN + height + 9), caption, fill=INK, font=_font())
    draw_scale(sheet, 2 * MARGIN + slot, slot, MARGIN + height + 9)
    return sheet


def draw_heatmaps(pictures: Sequence[Image.Image], visual: Visual) -> Image.Image:
    """Draw all pictures of a request, one under the other.

    Raises:
        KeepError: The request ranked nothing, since it kept all tokens.
        ImageError: The request had another number of pictures.
    """
    if len(pictures) != visual.pictures:
        raise ImageError(
            f"the request had {visual.pictures} pictures and {len(pictures)} were given to draw; "
            "give the pictures of the request, in its order"
        )
    return stacked([draw_heatmap(one, visual, index) for index, one in enumerate(pictures)])


def stacked(blocks: Sequence[Image.Image]) -> Image.Image:
    """Blocks one under the other on paper, as wide as the widest."""
    width = max(block.width for block in blocks)
    whole = Image.new("RGB", (width, sum(block.height for block in blocks)), PAPER)
    top = 0
    for block in blocks:
        whole.paste(block, (0, top))
        top += block.height
    return whole


def write_heatmap(
    path: str | os.PathLike[str],
    pictures: Sequence[Image.Image],
    visual: Visual,
    *,
    force: bool = False,
) -> None:
    """Draw all pictures of a request into a PNG file, whole or not at all.

    Raises:
        KeepError: The request ranked nothing, since it kept all tokens.
        ImageError: The request had another number of pictures.
        OutputExistsError: The file is there, and `force` was not given.
        OutputError: It could not be written.
    """
    check_target(path, force=force)
    write_picture(path, draw_heatmaps(pictures, visual), force=force)


def write_picture(
    path: str | os.PathLike[str], picture: Image.Image, *, force: bool = False
) -> None:
    """Write a picture into a PNG file, whole or not at all.

    Raises:
        OutputExistsError: The file is there, and `force` was not given.
        OutputError: It could not be written.
    """
    data = io.BytesIO()
    picture.save(data, "PNG")
    replace_file(path, data.getvalue(), force=force)


def check_target(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Say early what `write_heatmap` would refuse.

    Raises:
        OutputExistsError: The file is there, and `force` was not given.
        OutputError: No PNG, or its folder is not there or may not be written to.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise OutputError(f"{target}: heatmaps are PNG files; give a name that ends in .png")
    check_file(target, force=force)


def colours(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The colours, RGB from 0 to 255, of values from 0 (dark) to 1 (light) and beyond."""
    return ramped(values, np.linspace(0, 1, len(COLOURS)), COLOURS)


def ramped(
    values: NDArray[np.floating], stops: NDArray[np.floating], ramp: NDArray[Any]
) -> NDArray[np.float64]:
    """The colours of values by a ramp [S, 3] whose colours stand at `stops` [S]."""
    return np.stack([np.interp(values, stops, channel) for channel in ramp.T], axis=-1)


def spread(relevance: NDArray[np.floating], middle: float = 0.2) -> NDArray[np.float64]:
    """Relevance on a scale from 0 to 1 that shows its structure: the median comes to about `middle`.

    A softmax is often so peaked that a linear scale would show one bright patch and nothing else.
    """
    values = np.nan_to_num(relevance.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    values = values - values.min()
    top = np.quantile(values, 0.995)
    if not top > 0:
        top = values.max()
    if not top > 0:
        return np.zeros_like(values)
    scaled: NDArray[np.float64] = np.clip(values / top, 0, 1)
    median = float(np.median(scaled))
    gamma = math.log(middle) / math.log(median) if 0 < median < 1 else 1.0
    return np.power(scaled, min(max(gamma, 0.3), 3.0))


def token_maps(visual: Visual, index: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scaled relevance [rows, columns] of one picture, and which of its tokens were kept."""
    scaled = spread(ranked(visual))
    if index not in visual.picture:
        raise ImageError(
            f"there is no picture {index + 1}: the request had {visual.pictures}; "
            "give the pictures of the request, in its order"
        )
    return token_map(scaled, visual, index), token_map(kept_tokens(visual), visual, index)


def ranked(visual: Visual) -> NDArray[np.float32]:
    """The relevance of a request's visual tokens.

    Raises:
        KeepError: The request ranked nothing, since it kept all tokens.
    """
    if visual.relevance is None:
        raise KeepError("all tokens were kept, so none were ranked; keep fewer to see a heatmap")
    return visual.relevance


def kept_tokens(visual: Visual) -> NDArray[np.bool_]:
    """Which of a request's visual tokens were kept, bool [N_v]."""
    kept = np.zeros(visual.total, dtype=np.bool_)
    kept[visual.indices] = True
    return kept


def token_map(values: NDArray[CELL], shown: Shown, index: int) -> NDArray[CELL]:
    """What one picture's tokens have, as cells [rows, columns] of the picture.

    Cells are as large as the smallest box. Where boxes overlap the maximum counts, and where there is
    none the least of the picture's values. A token whose box is empty, such as a newline, shows nothing.

    Args:
        values: [N_v], one for each visual token of all pictures.
        shown: Which part of which picture each token shows.
        index: Which picture.
    """
    here = tokens_of(shown, index)
    boxes, values = shown.boxes[here].astype(np.float64), values[here]
    across, down = np.rint(1 / (boxes[:, 2:] - boxes[:, :2]).min(axis=0)).astype(int)
    sizes = np.array([across, down, across, down])
    # A cell is in a box if its middle is.
    edges = np.ceil(boxes * sizes - 0.5 - 1e-4).astype(int)
    cells = np.full((down, across), values.min(), values.dtype)
    for (left, top, right, bottom), value in zip(edges, values, strict=True):
        part = cells[top:bottom, left:right]
        np.maximum(part, value, out=part)
    return cells


def tokens_of(shown: Shown, index: int) -> NDArray[np.bool_]:
    """Which tokens show some of a picture, bool [N_v]: a newline's box is empty, and shows nothing."""
    wide = np.all(shown.boxes[:, 2:] > shown.boxes[:, :2], axis=1)
    here: NDArray[np.bool_] = np.logical_and(wide, shown.picture == index)
    return here


def panel_size(picture: Image.Image) -> tuple[int, int]:
    """A panel's (width, height): wide enough to see a patch, and no higher than a screen."""
    width = min(max(picture.width, LEAST_WIDTH), MOST_WIDTH)
    height = picture.height * width / picture.width
    if height > MOST_HEIGHT:
        width, height = round(width * MOST_HEIGHT / height), MOST_HEIGHT
    return max(width, 1), max(round(height), 1)


def under_relevance(
    original: Image.Image, relevance: NDArray[np.float64], paint: Paint = colours
) -> Image.Image:
    """The colours of relevance, lit by the picture so that its shapes are seen.

    Args:
        original: The picture in RGB, as large as it is to be drawn.
        relevance: [rows, columns] on the scale of `paint`.
        paint: Values to RGB from 0 to 255, with a last axis of 3.
    """
    cells = Image.fromarray(relevance.astype(np.float32))
    smooth = np.asarray(cells.resize(original.size, Image.Resampling.BICUBIC))
    grey = np.asarray(original.convert("L"), dtype=np.float64)[..., None] / 255
    lit = paint(smooth) * (SHADE + (1 - SHADE) * grey) * (1 - GLOW) + 255 * GLOW * grey
    return Image.fromarray(lit.round().astype(np.uint8))


def kept_alone(original: Image.Image, kept: NDArray[np.bool_]) -> Image.Image:
    """The picture with kept patches as they are, outlined, and the rest faded to grey."""
    mask = Image.fromarray((enlarged(kept, original.size) * 255).astype(np.uint8))
    grey = np.asarray(original.convert("L").convert("RGB"), dtype=np.float64)
    faded = Image.fromarray((grey * (1 - FADE) + FADED * FADE).round().astype(np.uint8))
    faded.paste(OUTLINE, mask=mask.filter(ImageFilter.MaxFilter(5)))
    faded.paste(original, mask=mask)
    return faded


def outlined(panel: Image.Image, kept: NDArray[np.bool_]) -> Image.Image:
    """A picture with a light line, dark outside, around its kept parts.

    Args:
        panel: The picture in RGB.
        kept: bool [rows, columns], which cells of it were kept.
    """
    # Beyond the picture nothing is kept, so that the line closes at its edge.
    mask = np.pad(enlarged(kept, panel.size), 3)
    whole = Image.fromarray((mask * 255).astype(np.uint8))
    result = panel.copy()
    for wide, colour in ((3, DARK), (1, LIGHT)):
        inner = np.asarray(whole.filter(ImageFilter.MinFilter(2 * wide + 1)))[3:-3, 3:-3] > 0
        result.paste(
            colour, mask=Image.fromarray(((mask[3:-3, 3:-3] & ~inner) * 255).astype(np.uint8))
        )
    return result


def enlarged(cells: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A grid's cells as pixels of a picture of `size` (width, height)."""
    rows = np.arange(size[1]) * cells.shape[0] // size[1]
    columns = np.arange(size[0]) * cells.shape[1] // size[0]
    pixels: NDArray[np.bool_] = cells[rows[:, None], columns]
    return pixels


def draw_scale(sheet: Image.Image, left: int, width: int, top: int) -> None:
    """The scale of colours, at the right of the place under a panel of relevance."""
    bar = colours(np.tile(np.linspace(0, 1, 96), (10, 1))).round().astype(np.uint8)
    font, pen = _font(), ImageDraw.Draw(sheet)
    right = left + width
    pen.text((right, top), "high", fill=INK, font=font, anchor="ra")
    right -= math.ceil(font.getlength("high ")) + bar.shape[1]
    sheet.paste(Image.fromarray(bar), (right, top + 4))
    pen.text((right - font.getlength(" "), top), "low", fill=INK, font=font, anchor="ra")


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: the same on every machine."""
    return ImageFont.load_default(TEXT)
