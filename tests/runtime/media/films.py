"""Video files that tests make: frames that carry their own number, at times that the test chooses."""

import io
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

BITS, CELL, HEIGHT = 12, 8, 64
WIDTH = BITS * CELL
TICKS = 90_000


def numbered(number: int) -> Image.Image:
    """A picture whose upper half has a white column for each bit set of a number.

    Its lower half is green on the left and violet on the right, so that turns and mirrorings show.
    """
    bits = [255 * (number >> bit & 1) for bit in range(BITS)]
    levels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    levels[: HEIGHT // 2] = np.repeat(bits, CELL)[:, None]
    levels[HEIGHT // 2 :, : WIDTH // 2] = (20, 180, 40)
    levels[HEIGHT // 2 :, WIDTH // 2 :] = (160, 20, 200)
    return Image.fromarray(levels)


def number_of(picture: Image.Image) -> int:
    """The number that a picture of `numbered` carries."""
    row = np.asarray(picture.convert("L").resize((WIDTH, HEIGHT)))[HEIGHT // 4]
    centres = row.reshape(BITS, CELL)[:, 2:-2].mean(1)
    return sum(1 << bit for bit in np.flatnonzero(centres > 128).tolist())


def seconds(count: int, rate: Fraction | int = 30, start: float = 0) -> list[Fraction]:
    """Times of `count` frames, `rate` to the second."""
    return [Fraction(start) + number / Fraction(rate) for number in range(count)]


def write_film(
    path: Path,
    times: Iterable[Fraction],
    codec: str = "libx264",
    *,
    first: int = 0,
    form: str | None = None,
    rate: int | None = None,
    pixels: str = "yuv420p",
    every: int = 15,
    ahead: int = 0,
    options: Mapping[str, str] | None = None,
    muxing: Mapping[str, str] | None = None,
    pictures: Iterable[Image.Image] | None = None,
) -> Path:
    """Encode a frame for each time in seconds.

    Args:
        path: The file, which is also returned.
        times: When each frame is shown.
        codec: The encoder.
        first: The first frame's number.
        form: The container; None goes by the file's name.
        rate: Frames a second as the headers are to tell them; None tells nothing but times.
        pixels: The pixel format.
        every: Frames from one key to the next.
        ahead: The most B-frames in a row.
        options: The encoder's.
        muxing: The container's.
        pictures: The frames; None numbers them.
    """
    given = {"crf": "16", "threads": "1"} if codec == "libx264" else {"threads": "1"}
    shown = list(times)
    frames = pictures or (numbered(first + place) for place in range(len(shown)))
    with av.open(str(path), "w", format=form, options=dict(muxing or {})) as container:
        stream: Any = container.add_stream(
            codec, rate=rate or 30, options={**given, **(options or {})}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        stream.gop_size, stream.max_b_frames = every, ahead
        ticks = rate or TICKS
        stream.time_base = stream.codec_context.time_base = Fraction(1, ticks)
        for time, picture in zip(shown, frames, strict=True):
            frame = av.VideoFrame.from_image(picture).reformat(format=pixels)
            frame.time_base, frame.pts = Fraction(1, ticks), round(time * ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def joined(path: Path, *parts: Path) -> Path:
    """The bytes of several files, one after the other, as one."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def every_frame(path: Path) -> list[Image.Image]:
    """All frames as they come, the whole file decoded without choosing: what choosing is held against."""
    with av.open(io.BytesIO(path.read_bytes())) as container:
        return [frame.to_image() for frame in container.decode(video=0)]
