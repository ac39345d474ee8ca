"""Qwen2-VL: pictures and videos of any size, 2 x 2 patches to a token, three-axis rotary positions."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from tokenizers import Encoding, Tokenizer

from foveate.errors import BundleError, PromptError
from foveate.families.base import FrameRule, Medium, Message, Prompt, VisualInput
from foveate.families.chat import ChatTemplate, texts_of
from foveate.families.qwen2_vl_pixels import Grid, GridInput, Pixels
from foveate.families.qwen2_vl_settings import (
    Settings,
    read_preprocessing,
    read_video_settings,
    settings_from_checkpoint,
    video_settings_from_checkpoint,
)

_PLURALS = {"image": "pictures", "video": "videos"}
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

    __slots__ = ("_control", "_pixels", "_template", "_tokenizer", "_tokens", "_variables")

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
        self._tokenizer, self._tokens = tokenizer, dict(tokens)
        self._template = ChatTemplate(chat_template)
        self._variables = {
            f"{role}_token": str(texts[role]) for role in _SPECIAL_VARIABLES if role in texts
        }
        self._control = frozenset(tokens.values()).union(
            index
            for index, token in tokenizer.get_added_tokens_decoder().items()
            if token.special or token.content in chat_template
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

    def plan(self, media: Sequence[Medium]) -> GridInput:
        """What `prepare` gives of pictures' sizes alone; see `Family.plan`."""
        return self._pixels.plan(media)

    def prepare(self, media: Sequence[Medium]) -> GridInput:
        """Turn pictures and videos into what the vision graph takes; see `Pixels.prepare`."""
        return self._pixels.prepare(media)

    def layout(self, messages: Sequence[Message], visual: VisualInput) -> Prompt:
        """Render a conversation and place every token; see `Family.layout`.

        The instruction is what stands between the last picture and the end of that turn; without
        pictures, the tokens of the last text.

        Raises:
            PromptError: Text that is empty, not text, or has a control token in it, or messages that
                the template refuses.
        """
        assert isinstance(visual, GridInput)
        texts = [self._checked(text) for text in texts_of(messages)]
        kinds = ["video" if moving else "image" for moving in visual.moving]
        wanted = [self._placeholder(kind) for kind in kinds]
        rendered = self._template.render(messages, variables=self._variables)
        bos = self._variables.get("bos_token")
        encoding = self._tokenizer.encode(
            rendered, add_special_tokens=not (bos and rendered.startswith(bos))
        )
        ids = np.asarray(encoding.ids, dtype=np.int64)
        placeholders = {self._tokens[kind] for kind in _PLURALS if kind in self._tokens}
        visual_ids = np.logical_or.reduce([ids == token for token in placeholders])
        slots = np.flatnonzero(visual_ids)
        if ids[slots].tolist() != wanted:
            named = " and ".join(_PLURALS[kind] for kind in dict.fromkeys(kinds)) or "no pictures"
            raise PromptError(
                f"The chat template made {len(slots)} places for {len(wanted)} {named}; "
                "check the bundle's chat template."
            )
        lengths = np.ones_like(ids)
        lengths[slots] = [math.prod(grid) for grid in visual.grids]
        token_ids = np.repeat(ids, lengths)
        if len(slots):
            starts = np.cumsum(lengths) - lengths
            instruction = starts[self._after_pictures(ids)]
        else:
            instruction = _span(encoding, rendered, texts[-1])
        positions = _rotary_positions(lengths, slots, visual.grids)
        return Prompt(
            token_ids=token_ids,
            visual_index=np.flatnonzero(np.repeat(visual_ids, lengths)).astype(np.int64),
            instruction_index=instruction,
            position_ids=positions,
            next_position=int(positions.max()) + 1,
        )

    def _placeholder(self, kind: str) -> int:
        """The token that stands for a picture or a video before it is laid out."""
        if kind not in self._tokens:
            raise PromptError(
                f"The bundle names no {kind!r} token, so it takes no {_PLURALS[kind]}; export it again."
            )
        return self._tokens[kind]

    def _checked(self, prompt: str) -> str:
        """The prompt as a plain str, or a PromptError that says what is wrong with it."""
        if not isinstance(prompt, str):
            raise PromptError(f"A prompt is text, not {type(prompt).__name__}; pass a str.")
        text = str.__str__(prompt)
        if not text.strip():
            raise PromptError("The prompt is empty; ask something about the picture.")
        if "\0" in text:
            raise PromptError("The prompt has a NUL character in it; remove it.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"The prompt has half a surrogate pair at character {error.start}; "
                "decode its source with the right encoding."
            ) from error
        for index in self._tokenizer.encode(text, add_special_tokens=False).ids:
            if index in self._control:
                raise PromptError(
                    f"The prompt holds the text of the control token "
                    f"{self._tokenizer.id_to_token(index)!r}, which the model would obey; remove it."
                )
        return text

    def _after_pictures(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the instruction stands in `ids` int64 [n], placeholders not yet widened."""
        ends = np.flatnonzero(ids == self._tokens["vision_end"])
        begin = int(ends[-1]) + 1 if len(ends) else len(ids)
        closing = np.flatnonzero(ids[begin:] == self._tokens["eos"])
        if not len(closing) or closing[0] == 0:
            raise PromptError(
                "The chat template leaves no text between the last picture and the end of the "
                "user's turn; check the bundle's chat template."
            )
        return np.arange(begin, begin + int(closing[0]), dtype=np.int64)


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


def _span(encoding: Encoding, rendered: str, text: str) -> NDArray[np.int64]:
    """Tokens of `text` in the rendered conversation, or all where the template has altered it."""
    begin = rendered.rfind(text)
    if begin < 0:
        return np.arange(len(encoding.ids), dtype=np.int64)
    end = begin + len(text)
    inside = [left < end and right > begin for left, right in encoding.offsets]
    return np.flatnonzero(inside).astype(np.int64)
