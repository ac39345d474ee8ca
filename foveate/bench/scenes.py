"""Scenes to measure with: pictures and videos of noise, since zeros would be faster than any picture."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.errors import ImageError, KeepError, LimitError
from foveate.families.base import Medium, Video
from foveate.runtime.keep import parse_keep

SEED = 0
SIDE_LIMIT = 16384
FRAME_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Scene:
    """The size of a picture or video.

    Attributes:
        width: In pixels.
        height: In pixels.
        frames: Of a video; 0 for a picture.
    """

    width: int
    height: int
    frames: int = 0

    @property
    def label(self) -> str:
        """As the user gives it: 1260x1008, or 32x728x392 for a video."""
        sides = f"{self.width}x{self.height}"
        return f"{self.frames}x{sides}" if self.frames else sides

    def levels(self) -> NDArray[np.uint8]:
        """Noise uint8 [frames, height, width, 3], one frame for a picture; always the same."""
        shape = (self.frames or 1, self.height, self.width, 3)
        return np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8)

    def pictures(self) -> list[Image.Image]:
        """The picture, or the video's frames, RGB."""
        return [Image.fromarray(frame) for frame in self.levels()]

    def media(self, pictures: Sequence[Image.Image]) -> list[Medium]:
        """The picture, or the frames as one video, as families take them."""
        return [Video(tuple(pictures))] if self.frames else list(pictures)


def parse_picture(text: str) -> Scene:
    """Read WIDTHxHEIGHT.

    Raises:
        ImageError: Anything else.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip())
    if found is None:
        raise ImageError(f"image size {text!r} is no WIDTHxHEIGHT; give pixels, such as 1260x1008")
    return _checked(Scene(int(found[1]), int(found[2])), text)


def parse_video(text: str) -> Scene:
    """Read FRAMESxWIDTHxHEIGHT.

    Raises:
        ImageError: Anything else.
    """
    found = re.fullmatch(r"(\d{1,4})x(\d{1,5})x(\d{1,5})", text.strip())
    if found is None or not 1 <= int(found[1]) <= FRAME_LIMIT:
        raise ImageError(
            f"video size {text!r} is no FRAMESxWIDTHxHEIGHT; give frames and pixels, such as 32x728x392"
        )
    return _checked(Scene(int(found[2]), int(found[3]), int(found[1])), text)


def parse_keeps(text: str) -> tuple[float | int, ...]:
    """Read a list such as "1,0.5,64": ratios, counts, 1 for all; each once.

    Raises:
        KeepError: Something that is no keep, or nothing.
    """
    keeps = tuple(dict.fromkeys(parse_keep(part) for part in text.split(",") if part.strip()))
    if not keeps:
        raise KeepError(f"keep is {text!r}; give a list such as 1,0.5,0.25,0.1")
    return keeps


def parse_batches(text: str) -> tuple[int, ...]:
    """Read a list such as "1,4,8": requests at once; each number once, in rising order.

    Raises:
        LimitError: Something that is no such number, or nothing.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(re.fullmatch(r"[1-9]\d{0,3}", part) for part in parts):
        raise LimitError(f"batch is {text!r}; give a list of requests at once, such as 1,4,8")
    return tuple(sorted({int(part) for part in parts}))


def parse_list(text: str | None, parse: Callable[[str], Scene]) -> tuple[Scene, ...]:
    """Read scenes with commas between them, each once; none where nothing was given."""
    parts = (text or "").split(",")
    return tuple(dict.fromkeys(parse(part) for part in parts if part.strip()))


def _checked(scene: Scene, text: str) -> Scene:
    """The scene, or ImageError for a side that no picture has."""
    if not all(1 <= side <= SIDE_LIMIT for side in (scene.width, scene.height)):
        raise ImageError(f"size {text!r} has a side that is not 1 to {SIDE_LIMIT} pixels long")
    return scene
