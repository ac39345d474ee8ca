"""Qwen2-VL: pictures and videos of any size, 2 x 2 patches to a token, three-axis rotary positions."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from tokenizers import Tokenizer

from foveate.families.base import (
    CheckpointForm,
    FrameRule,
    Medium,
    Message,
    PixelLimits,
    Prompt,
    VisualInput,
)
from foveate.families.prompt import PromptLayout
from foveate.families.qwen2_vl_pixels import Grid, GridInput, Pixels, shrunk
from foveate.families.qwen2_vl_settings import (
    Settings,
    read_preprocessing,
    read_video_settings,
    settings_from_checkpoint,
    video_settings_from_checkpoint,
)

_NEVER_ASKED = ("<|endoftext|>", "<|vision_pad|>")
"""Control tokens of this family that no role and no template names."""


class Qwen2VL:
    """Preprocessing, prompt layout and positions of Qwen2-VL; see `Family`.

    `tokens` must hold the ids "image" (the placeholder), "vision_end" and "eos" (what ends a turn), and
    for videos "video" (their placeholder);
    "bos", "pad" and "unk", where given, reach the chat template as bos_token and so on, and the text
    of every id given is refused in prompts.
    """

    name: str = "qwen2_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    form: ClassVar[CheckpointForm] = CheckpointForm()

    __slots__ = ("_layout", "_pixels")

    def __init__(
        self,
        preprocessing: Mapping[str, Any],
        tokenizer: Tokenizer,
        chat_template: str,
        tokens: Mapping[str, int],
        levels: bool = False,
    ) -> None:
        """Build from what a bundle holds; see `foveate.families.create`."""
        self._pixels = Pixels(
            read_preprocessing(preprocessing), read_video_settings(preprocessing), levels=levels
        )
        self._layout = PromptLayout(
            tokenizer, chat_template, tokens, ("image", "vision_end", "eos"), _NEVER_ASKED
        )

    @staticmethod
    def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
        """Read a checkpoint's settings of pictures and of videos; see the functions called so."""
        return {
            "images": settings_from_checkpoint(folder),
            "videos": video_settings_from_checkpoint(folder),
        }

    @property
    def settings(self) -> Settings:
        """How pictures become patches."""
        return self._pixels.settings

    @property
    def frame_rule(self) -> FrameRule:
        """How many frames of a video file are taken."""
        return self._pixels.videos.frame_rule()

    def fit_frame(self, frame: Image, frames: int) -> Image:
        """A frame of a video, resized; see `Pixels.fit_frame`."""
        return self._pixels.fit_frame(frame, frames)

    def limited(self, limits: PixelLimits) -> "Qwen2VL":
        """The same with a request's limits; see `Family.limited`."""
        if limits == PixelLimits():
            return self
        found = copy.copy(self)
        found._pixels = self._pixels.limited(limits)
        return found

    def plan(self, media: Sequence[Medium]) -> GridInput:
        """What `prepare` gives of pictures' sizes alone; see `Family.plan`."""
        return self._pixels.plan(media)

    def prepare(self, media: Sequence[Medium]) -> GridInput:
        """Turn pictures and videos into what the vision graph takes; see `Pixels.prepare`."""
        return self._pixels.prepare(media)

    def shrink(self, media: Sequence[Medium], most: Sequence[int]) -> GridInput:
        """Prepare pictures made smaller; see `shrunk`."""
        return shrunk(self.settings, media, most, levels=self._pixels.levels)

    def layout(self, messages: Sequence[Message], visual: VisualInput) -> Prompt:
        """Render a conversation and place every token; see `Family.layout`."""
        assert isinstance(visual, GridInput)
        kinds = ["video" if moving else "image" for moving in visual.moving]
        placed = self._layout.place(messages, kinds, [math.prod(grid) for grid in visual.grids])
        positions = _rotary_positions(placed.lengths, placed.slots, visual.grids)
        return Prompt(
            token_ids=placed.token_ids,
            visual_index=placed.visual_index,
            instruction_index=placed.instruction_index,
            position_ids=positions,
            next_position=int(positions.max()) + 1,
        )


def _rotary_positions(
    lengths: NDArray[np.int64], slots: NDArray[np.int64], grids: Sequence[Grid]
) -> NDArray[np.int64]:
    """Time, row and column of each token, int64 [3, T].

    Text counts on by one; a picture or video spans its grid from where it begins, and the text after it
    goes on one past the largest position that it has on any axis.
    """
    steps = np.ones_like(lengths)
    steps[slots] = [max(grid) for grid in grids]
    begins = np.cumsum(steps) - steps
    positions = np.tile(np.repeat(begins, lengths), (3, 1))
    starts = np.cumsum(lengths) - lengths
    for start, grid in zip(starts[slots], grids, strict=True):
        positions[:, start : start + math.prod(grid)] += np.indices(grid, np.int64).reshape(3, -1)
    return positions
