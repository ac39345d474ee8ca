"""Qwen2-VL's pixels: pictures and frames to what its vision graphs take."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.errors import ImageError
from foveate.families.base import Vision
from foveate.families.pixels import for_each, level_table, resize_bicubic, to_rgb
from foveate.families.qwen2_vl_settings import Settings, fitted_size

Levels = NDArray[np.uint8]
"""A picture's 8-bit levels [height, width, 3], its sides whole tokens."""


class Pixels:
    """Preprocessing with one bundle's settings."""

    def __init__(self, settings: Settings) -> None:
        """Look up once what each level becomes."""
        self.settings = settings
        self.table = level_table(settings.image_mean, settings.image_std, settings.rescale_factor)
        self.unit = settings.patch_size * settings.merge_size

    def preprocess(self, pictures: Sequence[Image.Image]) -> Vision:
        """Resize, normalise and cut pictures, bit for bit as the reference image processor.

        Transparent pictures are laid on white. Any number of pictures, also none.

        Returns:
            Feeds pixel_values float32 [P, C * temporal_patch_size * patch_size^2], P patches in
            token order; position_ids int64 [P, 2], each patch's (row, column) in its picture;
            cu_seqlens int32 [pictures + 1], where each picture's patches begin and the last end.

        Raises:
            ImageError: A side over 200 times the other, or a mode that cannot be made RGB.
        """
        resized = self.resized(pictures)
        width = 3 * self.settings.temporal_patch_size * self.settings.patch_size**2
        pixels = [self.patches(levels) for levels in resized]
        places = [self.places(levels) for levels in resized]
        lengths = [len(part) for part in pixels]
        return Vision(
            feeds={
                "pixel_values": np.concatenate([np.empty((0, width), np.float32), *pixels]),
                "position_ids": np.concatenate([np.empty((0, 2), np.int64), *places]),
                "cu_seqlens": np.cumsum([0, *lengths], dtype=np.int32),
            },
            grids=tuple((1, *self.grid(levels)) for levels in resized),
            sizes=tuple(size(levels) for levels in resized),
        )

    def preprocess_frames(self, frames: Sequence[Image.Image]) -> Vision:
        """Resize, normalise and cut the frames of one video; each is limited in size as a picture is.

        As many frames as a patch is deep (two) make one step in time; the last frame is repeated where
        they do not come out even. Attention stays within a step.

        Returns:
            Feeds as `preprocess` gives them, step after step; cu_seqlens has the borders of the steps.

        Raises:
            ImageError: No frame, frames of unequal size, or what `preprocess` refuses.
        """
        resized, depth = self.paired(frames), self.settings.temporal_patch_size
        steps = len(resized) // depth
        pixels = [
            self.patches(*resized[begin : begin + depth]) for begin in range(0, len(resized), depth)
        ]
        places = self.places(resized[0])
        return Vision(
            feeds={
                "pixel_values": np.concatenate(pixels),
                "position_ids": np.tile(places, (steps, 1)),
                "cu_seqlens": np.arange(steps + 1, dtype=np.int32) * np.int32(len(places)),
            },
            grids=((steps, *self.grid(resized[0])),),
            sizes=(size(resized[0]),),
            moving=True,
        )

    def levels(self, pictures: Sequence[Image.Image]) -> Vision:
        """Resize pictures as `preprocess` does, and leave the rest to the vision graph.

        Returns:
            For each picture what `run` gives, of one step of one frame.

        Raises:
            ImageError: A side over 200 times the other, or a mode that cannot be made RGB.
        """
        resized = self.resized(pictures)
        return Vision(
            feeds={},
            grids=tuple((1, *self.grid(levels)) for levels in resized),
            sizes=tuple(size(levels) for levels in resized),
            runs=tuple(self.run(levels[None, None]) for levels in resized),
        )

    def levels_of_frames(self, frames: Sequence[Image.Image]) -> Vision:
        """Resize the frames of one video, and leave the rest to the vision graph.

        Returns:
            What `run` gives, once.

        Raises:
            ImageError: No frame, frames of unequal size, or what `preprocess` refuses.
        """
        whole = self.paired(frames)
        depth = self.settings.temporal_patch_size
        steps = whole.reshape(-1, depth, *whole.shape[1:])
        return Vision(
            feeds={},
            grids=((len(steps), *self.grid(whole[0])),),
            sizes=(size(whole[0]),),
            runs=(self.run(steps),),
            moving=True,
        )

    def resized(self, pictures: Sequence[Image.Image]) -> list[Levels]:
        """Each picture's levels."""
        return for_each(self.resize, pictures)

    def resize(self, number: int, picture: Image.Image) -> Levels:
        """The levels of one picture, called `number` where it is refused."""
        fitted = fitted_size(picture.height, picture.width, self.settings, number)
        return np.asarray(resize_bicubic(to_rgb(picture, number), *fitted))

    def paired(self, frames: Sequence[Image.Image]) -> NDArray[np.uint8]:
        """All frames' levels [frames, height, width, 3], the last again until they fill whole steps."""
        if not frames or len({frame.size for frame in frames}) > 1:
            raise ImageError(
                "a video needs at least one frame, and frames of one size; resize them"
            )
        missing = -len(frames) % self.settings.temporal_patch_size
        fitted = fitted_size(frames[0].height, frames[0].width, self.settings, 1)
        whole = np.empty((len(frames) + missing, *fitted, 3), np.uint8)

        def lay(number: int, frame: Image.Image) -> None:
            """Resize one frame to where it belongs."""
            whole[number - 1] = self.resize(number, frame)

        # Frames that fit are copied alone, which threads would only wait for each other to do.
        for_each(lay, frames, apart=fitted != (frames[0].height, frames[0].width))
        whole[len(frames) :] = whole[len(frames) - 1]
        return whole

    def patches(self, *frames: Levels) -> NDArray[np.float32]:
        """The frames of one step, or a picture, to normalised patches float32 [P, width of a patch]."""
        patch, merge = self.settings.patch_size, self.settings.merge_size
        rows, columns = self.grid(frames[0])
        count, depth = rows * columns * merge * merge, self.settings.temporal_patch_size
        out = np.empty((count, 3, depth, patch, patch), dtype=np.float32)
        for place, levels in enumerate(frames):
            blocks = levels.reshape(rows, merge, patch, columns, merge, patch, 3)
            ordered = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, patch, patch)
            span = slice(None) if len(frames) == 1 else slice(place, place + 1)
            for channel in range(3):
                out[:, channel, span] = self.table[channel][ordered[:, channel]][:, None]
        return out.reshape(count, -1)

    def run(self, levels: NDArray[np.uint8]) -> dict[str, NDArray[np.generic]]:
        """What the vision graph takes of levels [steps, frames, height, width, 3].

        Returns:
            levels uint8 [steps, frames, runs, P * 3], a view of each frame as runs of P pixels;
            position_ids int64 [patches of a step, 2]; columns int64 [1], runs in a row of pixels;
            lengths int32 [steps], the patches of each step.
        """
        steps, frames, height, width = levels.shape[:4]
        patch, places = self.settings.patch_size, self.places(levels[0, 0])
        columns = width // patch
        return {
            "levels": levels.reshape(steps, frames, height * columns, patch * 3),
            "position_ids": places,
            "columns": np.array([columns], np.int64),
            "lengths": np.full(steps, len(places), np.int32),
        }

    def grid(self, levels: Levels) -> tuple[int, int]:
        """Rows and columns of visual tokens."""
        return levels.shape[0] // self.unit, levels.shape[1] // self.unit

    def places(self, levels: Levels) -> NDArray[np.int64]:
        """(row, column) of each patch, int64 [patches, 2], patches of one token together."""
        merge = self.settings.merge_size
        rows, columns = self.grid(levels)
        places = np.indices((rows * merge, columns * merge), dtype=np.int64)
        blocks = places.reshape(2, rows, merge, columns, merge)
        return blocks.transpose(1, 3, 2, 4, 0).reshape(-1, 2)


def size(levels: Levels) -> tuple[int, int]:
    """Height and width in pixels."""
    return levels.shape[0], levels.shape[1]
