"""Steps of preprocessing that families share; each the same to the bit as the reference's."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.errors import CheckpointError, ImageError
from foveate.families.base import Still
from foveate.families.settings_file import read_json

Given = TypeVar("Given")
Made = TypeVar("Made")

MANY, MOST_THREADS = 4, 8
"""From how many pictures on threads are worth it, and the most threads."""
TOGETHER = 1 << 27
"""The most pixels that are decoded at the same time, where one picture alone has no more."""
_IMAGE_PLACES = {"processor_config.json": "image_processor", "preprocessor_config.json": ""}
_VIDEO_PLACES = {
    "processor_config.json": "video_processor",
    "video_preprocessor_config.json": "",
    "preprocessor_config.json": "",
}
_STRIP = 1 << 20
"""Pixels that are laid on white at once."""
_STEPS = ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize")


def image_section(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Find a checkpoint's image settings: the file that holds them, and what it says.

    processor_config.json goes before preprocessor_config.json where it has an image_processor part.

    Raises:
        CheckpointError: There is none, it is no JSON object, or it leaves out a step of the four
            that every family here takes (RGB, resize, rescale, normalise).
    """
    found = _section(folder, _IMAGE_PLACES)
    if found is None:
        raise CheckpointError(
            f"{folder} holds no image settings; it needs a preprocessor_config.json, or a "
            "processor_config.json with an image_processor part."
        )
    return found


def video_section(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Find a checkpoint's video settings; None where no file has any.

    processor_config.json goes first where it has a video_processor part, then
    video_preprocessor_config.json, and then preprocessor_config.json, which holds for both.

    Raises:
        CheckpointError: As `image_section`.
    """
    return _section(folder, _VIDEO_PLACES)


def _section(folder: Path, places: Mapping[str, str]) -> tuple[Path, dict[str, Any]] | None:
    """The first file of `places`, or the part of it that they name, that is there."""
    for file, part in ((folder / name, part) for name, part in places.items()):
        if not file.is_file():
            continue
        raw = read_json(file)
        section = raw.get(part) if part else raw
        if isinstance(section, dict):
            for step in _STEPS:
                if section.get(step) not in (None, True):
                    raise CheckpointError(f"{file}: {step} must be true for Foveate to export it.")
            return file, section
    return None


def to_rgb(picture: Image.Image, number: int = 1) -> Image.Image:
    """The picture in RGB; what is transparent shows white.

    Raises:
        ImageError: A mode that Pillow cannot convert; the message calls the picture `number`.
    """
    try:
        if "A" in picture.getbands() or picture.info.get("transparency") is not None:
            return _on_white(picture)
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except Exception as error:
        raise ImageError(
            f"Picture {number} has mode {picture.mode} and cannot be made RGB ({error}); "
            "convert it to RGB first."
        ) from error


def _on_white(picture: Image.Image) -> Image.Image:
    """A picture laid on white, strip by strip, so that it is in memory twice and not five times."""
    rgb = Image.new("RGB", picture.size)
    rows = max(1, _STRIP // picture.width)
    for top in range(0, picture.height, rows):
        box = (0, top, picture.width, min(top + rows, picture.height))
        part = picture.crop(box).convert("RGBA")
        white = Image.new("RGBA", part.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, part).convert("RGB"), box)
    return rgb


def check_frames(frames: Sequence[Still]) -> None:
    """ImageError for a video without frames, or with frames of unequal size."""
    if not frames or len({frame.size for frame in frames}) > 1:
        raise ImageError("a video needs at least one frame, and frames of one size; resize them")


def small_enough(pictures: Sequence[Still]) -> bool:
    """Whether so many pictures as there are threads may be in memory together."""
    return MOST_THREADS * max((prod(one.size) for one in pictures), default=0) <= TOGETHER


def for_each(
    work: Callable[[int, Given], Made], items: Sequence[Given], *, threads: bool = True
) -> list[Made]:
    """What `work` makes of each item and its number from 1.

    Args:
        work: Called with number and item.
        items: Any number of them.
        threads: Whether to work on many in several threads, which speeds up decoding and resizing.

    Raises:
        Exception: What the work on the first item that failed raised.
    """
    if len(items) < MANY or not threads:
        return [work(number, item) for number, item in enumerate(items, start=1)]
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, range(1, len(items) + 1), items))


def resize_bicubic(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Bicubic, one axis at a time in the order of Pillow 13, which older Pillows do not follow.

    Rounding between the passes makes the order visible; each pass alone is the same in all versions.
    """
    if picture.size == (width, height):
        return picture
    lost_rows, lost_columns = picture.height - height, picture.width - width
    rows_first = lost_rows > 0 and lost_rows > 2 * lost_columns
    between = (picture.width, height) if rows_first else (width, picture.height)
    first = picture.resize(between, Image.Resampling.BICUBIC)
    return first.resize((width, height), Image.Resampling.BICUBIC)


def level_table(
    mean: tuple[float, float, float], std: tuple[float, float, float], factor: float
) -> NDArray[np.float32]:
    """What each 8-bit level becomes: float32 [3, 256].

    Scaled in double precision, then normalised in single, as the reference does pixel by pixel.
    """
    levels = (np.arange(256, dtype=np.float64) * factor).astype(np.float32)
    means, stds = (np.array(values, dtype=np.float32)[:, None] for values in (mean, std))
    table: NDArray[np.float32] = (levels - means) / stds
    return table
