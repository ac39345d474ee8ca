"""Qwen2-VL: pictures and videos of any size, 2 x 2 patches to a token, three-axis rotary positions."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from tokenizers import Encoding, Tokenizer

from foveate.errors import BundleError, PromptError
from foveate.families.base import (
    CheckpointForm,
    FrameRule,
    Medium,
    Message,
    PixelLimits,
    Prompt,
    VisualInput,
)
from foveate.families.chat import ChatTemplate
from foveate.families.control import ControlTokens
from foveate.families.messages import CARRIED, Conversation
from foveate.families.qwen2_vl_pixels import Grid, GridInput, Pixels
from foveate.families.qwen2_vl_settings import (
    Settings,
    read_preprocessing,
    read_video_settings,
    settings_from_checkpoint,
    video_settings_from_checkpoint,
)
from foveate.families.rendering import render

_NOUNS = {"image": "picture", "video": "video"}
_NEVER_ASKED = ("<|endoftext|>", "<|vision_pad|>")
"""Control tokens of this family that no role and no template names."""
_SPECIAL_VARIABLES = ("bos", "eos", "pad", "unk")


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

    __slots__ = ("_control", "_pixels", "_template", "_tokens", "_variables")

    def __init__(
        self,
        preprocessing: Mapping[str, Any],
        tokenizer: Tokenizer,
        chat_template: str,
        tokens: Mapping[str, int],
        levels: bool = False,
    ) -> None:
        """Build from what a bundle holds; switches the tokenizer's truncation and padding off.

        Args:
            preprocessing: What `settings_from_checkpoint` gave.
            tokenizer: The checkpoint's.
            chat_template: The checkpoint's, Jinja text.
            tokens: Ids of control tokens by role.
            levels: Whether the vision graph takes 8-bit levels; see `Pixels`.

        Raises:
            BundleError: Settings that are wrong, or a token that is missing or that the tokenizer lacks.
            PromptError: A chat template that cannot be compiled.
        """
        self._pixels = Pixels(
            read_preprocessing(preprocessing), read_video_settings(preprocessing), levels=levels
        )
        for role in ("image", "vision_end", "eos"):
            if role not in tokens:
                raise BundleError(f"The bundle names no {role!r} token; export it again.")
        texts = {role: tokenizer.id_to_token(index) for role, index in tokens.items()}
        for role, text in texts.items():
            if text is None:
                raise BundleError(
                    f"The bundle's {role!r} token is {tokens[role]}, which its tokenizer lacks; "
                    "export it again."
                )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokens = dict(tokens)
        self._template = ChatTemplate(chat_template)
        self._variables = {
            f"{role}_token": str(texts[role]) for role in _SPECIAL_VARIABLES if role in texts
        }
        others = map(tokenizer.token_to_id, _NEVER_ASKED)
        control = [*tokens.values(), *(index for index in others if index is not None)]
        self._control = ControlTokens(tokenizer, self._template, self._variables, control)

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

    def layout(self, messages: Sequence[Message], visual: VisualInput) -> Prompt:
        """Render a conversation and place every token; see `Family.layout`."""
        assert isinstance(visual, GridInput)
        conversation = Conversation.of(messages)
        kinds = ["video" if moving else "image" for moving in visual.moving]
        if conversation.kinds != kinds:
            raise PromptError(
                f"The messages have places for {_counted(conversation.kinds)}, and {_counted(kinds)} "
                "were given, in this order; add or leave out parts of type image and video."
            )
        wanted = [self._placeholder(kind) for kind in kinds]
        rendered = render(self._template, conversation, self._variables)
        encoding = self._control.checked(rendered)
        ids = np.asarray(encoding.ids, dtype=np.int64)
        placeholders = {self._tokens[kind] for kind in CARRIED if kind in self._tokens}
        visual_ids = np.logical_or.reduce([ids == token for token in placeholders])
        slots = np.flatnonzero(visual_ids)
        if ids[slots].tolist() != wanted:
            raise PromptError(
                f"The chat template made {len(slots)} places for {_counted(kinds)}; check the "
                "bundle's chat template."
            )
        lengths = np.ones_like(ids)
        lengths[slots] = [math.prod(grid) for grid in visual.grids]
        starts = np.cumsum(lengths) - lengths
        positions = _rotary_positions(lengths, slots, visual.grids)
        return Prompt(
            token_ids=np.repeat(ids, lengths),
            visual_index=np.flatnonzero(np.repeat(visual_ids, lengths)).astype(np.int64),
            instruction_index=starts[_within(encoding, rendered.instruction)],
            position_ids=positions,
            next_position=int(positions.max()) + 1,
        )

    def _placeholder(self, kind: str) -> int:
        """The token that stands for a picture or a video before it is laid out."""
        if kind not in self._tokens:
            raise PromptError(
                f"The bundle names no {kind!r} token, so it takes no {_NOUNS[kind]}s; export it again."
            )
        return self._tokens[kind]


def _counted(kinds: Sequence[str]) -> str:
    """How many pictures and videos there are, in words."""
    counts = [
        f"{kinds.count(kind)} {noun if kinds.count(kind) == 1 else noun + 's'}"
        for kind, noun in _NOUNS.items()
        if kind in kinds
    ]
    return " and ".join(counts) or "no picture"


def _rotary_positions(
    lengths: NDArray[np.int64], slots: NDArray[np.intp], grids: Sequence[Grid]
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


def _within(encoding: Encoding, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Which tokens have a character in one of the spans."""
    lefts, rights = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    # A tokenizer that leaves spaces out of its offsets gives a token of spaces an empty one behind them.
    lefts = np.minimum(lefts, rights - 1)
    begins, ends = np.array(sorted(spans), dtype=np.int64).T
    # The last span that begins before a token ends; no other can have a character of it that this has not.
    last = np.searchsorted(begins, rights) - 1
    return np.flatnonzero((last >= 0) & (lefts < ends[last])).astype(np.int64)
