"""Qwen2-VL's pixels: pictures and video frames to what its vision graphs take."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
from msgspec.structs import asdict, replace
from numpy.typing import NDArray
from PIL import Image

from foveate.errors import ImageError
from foveate.families.base import (
    Call,
    Empty,
    Medium,
    PixelLimits,
    Still,
    UnopenedPicture,
    Video,
    VisualInput,
    opened,
)
from foveate.families.pixels import (
    check_frames,
    for_each,
    level_table,
    resize_bicubic,
    small_enough,
    to_rgb,
)
from foveate.families.qwen2_vl_settings import (
    Settings,
    VideoSettings,
    fitted_size,
    limited_settings,
)

Grid = tuple[int, int, int]
"""Steps in time, rows and columns of visual tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridInput(VisualInput):
    """Pictures and videos whose tokens fill grids.

    Attributes:
        grids: Of each picture or video; the tokens are in the order of time, rows, columns.
        moving: Which of them are videos.
    """

    grids: tuple[Grid, ...]
    moving: tuple[bool, ...]


class PatchesCall(Call):
    """Pictures, or steps of videos, of one size for a vision graph of patches.

    The inputs are `pixel_values` float32 [N, P, C · temporal_patch_size · patch_size²], P patches of each
    of N pictures in token order; and `position_ids` int64 [N, P, 2], each patch's (row, column).
    """

    __slots__ = ()

    def parts(self, most: int) -> tuple[Call, ...]:
        """As many pictures a run as have `most` visual tokens together, at least one."""
        total = len(self.inputs["pixel_values"])
        tokens = self.tokens // total
        count = max(1, most // tokens)
        return tuple(
            PatchesCall(
                {name: array[start : start + count] for name, array in self.inputs.items()},
                min(count, total - start) * tokens,
            )
            for start in range(0, total, count)
        )


class LevelsCall(Call):
    """One picture or video for a vision graph that normalises and cuts it into patches itself.

    The inputs are `levels` uint8 [T, F, runs, P · 3], each frame as runs of P pixels; `position_ids`
    int64 [patches of a step, 2]; `columns` int64 [1], runs in a row of pixels; and `lengths` int32 [T],
    the real patches of each of T steps in time.
    """

    __slots__ = ()

    def padded(self, tokens: int, empty: Empty) -> Call:
        """One step in time with padding after its last patch; several steps as they are."""
        levels, places = self.inputs["levels"], self.inputs["position_ids"]
        if len(levels) > 1:
            return self
        patches = tokens * len(places) // self.tokens
        steps, frames, runs, width = levels.shape
        # Any level is finite once it is normalised, so padding may hold anything.
        whole = empty((steps, frames, runs // len(places) * patches, width), levels.dtype)
        whole[:, :, :runs] = levels
        padding = np.zeros((patches - len(places), 2), places.dtype)
        inputs = {"levels": whole, "position_ids": np.concatenate([places, padding])}
        return LevelsCall({**self.inputs, **inputs}, self.tokens)

    def parts(self, most: int) -> tuple[Call, ...]:
        """A video in parts of 1, 2, 4 … steps, so that videos of any length are of the same few shapes."""
        total, start = len(self.inputs["lengths"]), 0
        tokens = self.tokens // total
        parts: list[Call] = []
        while start < total:
            count = min(max(1, most // tokens), total - start)
            steps = 1 << (count.bit_length() - 1)
            part = slice(start, start + steps)
            taken = {name: self.inputs[name][part] for name in ("levels", "lengths")}
            parts.append(LevelsCall({**self.inputs, **taken}, steps * tokens))
            start += steps
        return tuple(parts)


class Pixels:
    """Preprocessing with one bundle's settings."""

    def __init__(
        self, settings: Settings, videos: VideoSettings | None = None, *, levels: bool = False
    ) -> None:
        """Look up once what each level becomes.

        Args:
            settings: How pictures become patches.
            videos: The limits of videos; None where they are those of pictures.
            levels: Whether the vision graph takes 8-bit levels, one picture or video a run, rather
                than patches.
        """
        self.settings, self.levels = settings, levels
        self.videos = VideoSettings(**asdict(settings)) if videos is None else videos
        self.table = level_table(settings.image_mean, settings.image_std, settings.rescale_factor)
        self.unit = settings.patch_size * settings.merge_size

    def limited(self, limits: PixelLimits) -> "Pixels":
        """The same with the limits of a request in place of the checkpoint's.

        Raises:
            LimitError: Limits that there cannot be.
        """
        settings = limited_settings(self.settings, limits)
        videos = limited_settings(self.videos, limits)
        return Pixels(settings, videos, levels=self.levels)

    def prepare(self, media: Sequence[Medium]) -> GridInput:
        """Resize pictures and videos, and for graphs of patches normalise and cut them.

        Patches are bit for bit those of the reference image processor. Transparent pictures are laid
        on white. A frame is limited in size as the settings of videos say; as many frames as a patch is deep
        (two) make one step in time, and the last frame is repeated where they do not come out even.

        Returns:
            A `PatchesCall` for each video, and for pictures of as many patches that follow each other.
            Or a `LevelsCall` for each picture and video.

        Raises:
            ImageError: A side over 200 times the other, a mode that cannot be made RGB, or a video
                without frames or with frames of unequal size.
        """
        plan = self.plan(media)
        pictures = [medium for medium in media if not isinstance(medium, Video)]
        resized = iter(for_each(self.resize, pictures, threads=small_enough(pictures)))
        steps = [
            self.paired(medium.frames) if isinstance(medium, Video) else next(resized)[None, None]
            for medium in media
        ]
        calls = map(self.levels_call, steps) if self.levels else self.patches_calls(steps)
        return dataclasses.replace(plan, calls=tuple(calls))

    def plan(self, media: Sequence[Medium]) -> GridInput:
        """The grids of pictures and videos, by their sizes alone; what `prepare` gives without its calls.

        Raises:
            ImageError: What `prepare` refuses by its size.
        """
        grids, depths, number = [], [], 0
        for medium in media:
            moving = isinstance(medium, Video)
            frames = medium.frames if isinstance(medium, Video) else (medium,)
            number += not moving
            check_frames(frames)
            depth = self.settings.temporal_patch_size if moving else 1
            width, height = frames[0].size
            if moving:
                fitted = self.frame_size(height, width, len(frames))
            else:
                fitted = fitted_size(height, width, self.settings, number)
            rows, columns = (side // self.unit for side in fitted)
            grids.append((-(-len(frames) // depth), rows, columns))
            depths.append(depth)
        return GridInput(
            calls=(),
            candidates=np.ones(sum(map(prod, grids)), dtype=np.bool_),
            picture=shown_pictures(grids, depths),
            boxes=np.concatenate([np.empty((0, 4), np.float32), *map(grid_boxes, grids)]),
            grids=tuple(grids),
            moving=tuple(isinstance(medium, Video) for medium in media),
        )

    def resize(self, number: int, picture: Still) -> NDArray[np.uint8]:
        """The 8-bit levels [height, width, 3] of a picture, called `number` where it is refused."""
        width, height = picture.size
        fitted = fitted_size(height, width, self.settings, number)
        return np.asarray(resize_bicubic(to_rgb(opened(picture), number), *fitted))

    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """Height and width that each frame of a video of so many is resized to.

        Raises:
            ImageError: A side over 200 times the other.
        """
        return fitted_size(height, width, self.videos.shared(frames))

    def fit_frame(self, frame: Image.Image, frames: int) -> Image.Image:
        """A frame of a video of so many as `prepare` would resize it, which then leaves it as it is.

        Raises:
            ImageError: A side over 200 times the other.
        """
        fitted = self.frame_size(frame.height, frame.width, frames)
        # Limits that leave no room between them would have the result resized once more.
        settled = self.frame_size(*fitted, frames) == fitted
        return resize_bicubic(to_rgb(frame), *fitted) if settled else frame

    def paired(self, frames: Sequence[Still]) -> NDArray[np.uint8]:
        """A video's levels [steps, frames of a step, height, width, 3], the last frame again where needed."""
        depth = self.settings.temporal_patch_size
        width, height = frames[0].size
        fitted = self.frame_size(height, width, len(frames))
        whole = np.empty((len(frames) + -len(frames) % depth, *fitted, 3), np.uint8)

        def write(number: int, frame: Still) -> None:
            """Resize one frame to its place."""
            whole[number - 1] = np.asarray(resize_bicubic(to_rgb(opened(frame), number), *fitted))

        # Frames at hand that fit are only copied, and threads would wait for each other.
        at_work = fitted != (height, width) or isinstance(frames[0], UnopenedPicture)
        for_each(write, frames, threads=at_work and small_enough(frames))
        whole[len(frames) :] = whole[len(frames) - 1]
        return whole.reshape(-1, depth, *whole.shape[1:])

    def patches_calls(self, media: Sequence[NDArray[np.uint8]]) -> Iterator[Call]:
        """Runs over the patches of pictures and videos, those of as many together."""
        merge = self.settings.merge_size
        for tokens, alike in groupby(media, lambda one: prod(self.grid(one)[1:])):
            group = list(alike)
            pictures = [picture for one in group for picture in one]
            width = 3 * self.settings.temporal_patch_size * self.settings.patch_size**2
            pixels = np.empty((len(pictures), tokens * merge**2, width), np.float32)
            for place, picture in zip(pixels, pictures, strict=True):
                self.write_patches(picture, place)
            places = np.concatenate([np.tile(self.places(one), (len(one), 1, 1)) for one in group])
            inputs: dict[str, NDArray[Any]] = {"pixel_values": pixels, "position_ids": places}
            yield PatchesCall(inputs, len(pictures) * tokens)

    def levels_call(self, steps: NDArray[np.uint8]) -> LevelsCall:
        """One run over the levels [steps, frames, height, width, 3] of a picture or video, not copied."""
        count, frames, height, width = steps.shape[:4]
        patch, places = self.settings.patch_size, self.places(steps)
        columns = width // patch
        inputs: dict[str, NDArray[Any]] = {
            "levels": steps.reshape(count, frames, height * columns, patch * 3),
            "position_ids": places,
            "columns": np.array([columns], np.int64),
            "lengths": np.full(count, len(places), np.int32),
        }
        return LevelsCall(inputs, prod(self.grid(steps)))

    def write_patches(self, frames: NDArray[np.uint8], whole: NDArray[np.float32]) -> None:
        """Write the frames [1 or depth, height, width, 3] of one step as normalised patches [P, width]."""
        patch, merge = self.settings.patch_size, self.settings.merge_size
        _, rows, columns = self.grid(frames[None])
        out = whole.reshape(len(whole), 3, self.settings.temporal_patch_size, patch, patch)
        for place, levels in enumerate(frames):
            blocks = levels.reshape(rows, merge, patch, columns, merge, patch, 3)
            ordered = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, patch, patch)
            span = slice(None) if len(frames) == 1 else slice(place, place + 1)
            for channel in range(3):
                out[:, channel, span] = self.table[channel][ordered[:, channel]][:, None]

    def grid(self, steps: NDArray[np.uint8]) -> Grid:
        """The grid of visual tokens of levels [steps, frames, height, width, 3]."""
        return len(steps), steps.shape[2] // self.unit, steps.shape[3] // self.unit

    def places(self, steps: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(row, column) of each patch of a step, int64 [patches, 2], patches of one token together."""
        merge = self.settings.merge_size
        _, rows, columns = self.grid(steps)
        places = np.indices((rows * merge, columns * merge), dtype=np.int64)
        blocks = places.reshape(2, rows, merge, columns, merge)
        pairs: NDArray[np.int64] = blocks.transpose(1, 3, 2, 4, 0).reshape(-1, 2)
        return pairs


def shown_pictures(grids: Sequence[Grid], depths: Sequence[int]) -> NDArray[np.int64]:
    """The picture or frame of each token, int64 [N_v]; a step of several frames counts as its first.

    Args:
        grids: Of each picture or video.
        depths: Frames in each one's steps in time.
    """
    pictures: list[int] = []
    tokens: list[int] = []
    first = 0
    for depth, (steps, rows, columns) in zip(depths, grids, strict=True):
        pictures += range(first, first + steps * depth, depth)
        tokens += [rows * columns] * steps
        first += steps * depth
    return np.repeat(np.array(pictures, np.int64), tokens)


@functools.lru_cache(64)
def grid_boxes(grid: Grid) -> NDArray[np.float32]:
    """The part of its picture that each token of a grid shows, float32 [N, 4]."""
    steps, rows, columns = grid
    top, left = np.indices((rows, columns)).reshape(2, -1)
    edges = (left / columns, top / rows, (left + 1) / columns, (top + 1) / rows)
    boxes = np.tile(np.stack(edges, axis=-1).astype(np.float32), (steps, 1))
    boxes.flags.writeable = False
    return boxes


def shrunk(
    settings: Settings, media: Sequence[Medium], most: Sequence[int], *, levels: bool = False
) -> GridInput:
    """Prepare pictures made smaller, aspects kept, each to give at most so many visual tokens.

    They are fitted anew from the size that the checkpoint's own limits give them, so that a small
    picture, which those enlarge, is not left with the few tokens of its own size.

    Args:
        settings: The checkpoint's.
        media: Any number of pictures.
        most: The most visual tokens of each, at least one.
        levels: Whether the vision graph takes 8-bit levels; see `Pixels`.

    Raises:
        ImageError: A picture that the family cannot take, or a video.
    """
    unit = settings.patch_size * settings.merge_size
    least = min(settings.min_pixels, unit**2)
    smaller: list[Image.Image] = []
    for number, (medium, count) in enumerate(zip(media, most, strict=True), start=1):
        if isinstance(medium, Video):
            raise ImageError("a video is not made smaller; leave it as it is")
        picture = opened(medium)
        limits = replace(settings, min_pixels=least, max_pixels=count * unit**2)
        whole = fitted_size(picture.height, picture.width, settings, number)
        height, width = (min(side, count * unit) for side in fitted_size(*whole, limits, number))
        smaller.append(resize_bicubic(to_rgb(picture, number), height, width))
    return Pixels(replace(settings, min_pixels=least), levels=levels).prepare(smaller)
