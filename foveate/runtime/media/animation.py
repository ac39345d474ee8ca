"""Animated pictures (GIF, WebP, PNG, AVIF) as videos: their frames by the time at which they are shown."""

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np
from PIL import Image, ImageSequence

from foveate.errors import ImageError
from foveate.families.pixels import to_rgb
from foveate.runtime.media.frame_times import FrameTimes
from foveate.runtime.media.picture_file import (
    PREFIX,
    is_animation,
    may_move,
    orientation,
    read_header,
    refusing,
    turned,
)
from foveate.runtime.media.pictures import MAX_PIXELS, read_file
from foveate.runtime.media.png import SIGNATURE, essential

MOST_FRAMES = 1 << 14
"""The most frames of an animation."""

_SHORTEST, _USUAL = 10, 100
"""Milliseconds: a frame of no more than the first is shown for the second, as browsers do."""


class Animation:
    """An animated picture, decoded once to see how long each frame is shown.

    Attributes:
        name: What messages call it.
        times: When each frame is shown.
        size: Width and height of each, upright.
    """

    def __init__(self, data: bytes, name: str, max_pixels: int) -> None:
        """Go through the frames; use `find_animation`.

        Raises:
            ImageError: One that is damaged, or more than `MOST_FRAMES`.
        """
        self._data, self.name, self._max_pixels = data, name, max_pixels
        starts: list[int] = []
        now, self.size = 0, (0, 0)
        with refusing(name):
            for frame in self._frames():
                if len(starts) == MOST_FRAMES:
                    raise ImageError(f"{name} has more than {MOST_FRAMES} frames; cut it.")
                frame.load()
                if not starts:
                    self.size = turned(frame, orientation(frame)).size
                starts.append(now)
                shown = round(frame.info.get("duration") or 0)
                now += shown if shown > _SHORTEST else _USUAL
        tick = Fraction(1, 1000)
        self.times = FrameTimes(
            count=len(starts),
            seconds=now * tick,
            interval=None,
            tick=tick,
            starts=np.array(starts, np.int64),
        )

    def pictures(self, chosen: Iterable[int]) -> list[Image.Image]:
        """The frames of these numbers, ascending, in RGB and upright; what is transparent shows white.

        Raises:
            ImageError: They have more pixels together than a picture may have.
        """
        wanted = list(chosen)
        found: dict[int, Image.Image] = {}
        with refusing(self.name):
            for number, frame in enumerate(self._frames()):
                if number in wanted:
                    found[number] = turned(to_rgb(frame.copy()), orientation(frame))
                if frame.width * frame.height * len(found) > self._max_pixels:
                    raise ImageError(
                        f"{self.name} has frames of {frame.width} x {frame.height} pixels, and "
                        f"{len(found)} of them are over the limit of {self._max_pixels}; take fewer a "
                        "second, or make it smaller."
                    )
                if number == wanted[-1]:
                    break
        return [found[number] for number in wanted]

    def _frames(self) -> Iterator[Image.Image]:
        """The frames one after the other; each is good until the next one is asked for."""
        film = read_header(io.BytesIO(self._data), self._data[:PREFIX], self.name, self._max_pixels)
        # Of a PNG, what is shown where animations are not is no frame.
        first = int(bool(film.info.get("default_image")))
        return itertools.islice(ImageSequence.Iterator(film), first, None)


def find_animation(
    source: str | os.PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS
) -> Animation | None:
    """The animated picture in a file or its bytes; None where it holds something else or is no file.

    Raises:
        ImageError: An animation that cannot be decoded.
    """
    if isinstance(source, bytes):
        data, name = source, f"The animation of {len(source)} bytes"
    else:
        path = os.fsdecode(source)
        try:
            if not os.path.isfile(path):
                return None
            with open(path, "rb") as file:
                if not may_move(file.read(PREFIX)):
                    return None
        except (OSError, ValueError):
            return None
        data, name = read_file(path, max_pixels), f"The animation {path!r}"
    if not may_move(data[:PREFIX]):
        return None
    with refusing(name):
        if data.startswith(SIGNATURE):
            data = essential(io.BytesIO(data), pixels=True)
        if not is_animation(read_header(io.BytesIO(data), data[:PREFIX], name, max_pixels)):
            return None
    return Animation(data, name, max_pixels)
