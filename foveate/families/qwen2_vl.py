"""Qwen2-VL: pictures and videos of any size, 2 x 2 patches to a token, three-axis rotary positions."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Encoding, Tokenizer

from foveate.errors import BundleError, PromptError
from foveate.families.base import Prompt, Vision
from foveate.families.chat import ChatTemplate
from foveate.families.qwen2_vl_pixels import Pixels
from foveate.families.qwen2_vl_settings import (
    Settings,
    fitted_size,
    read_settings,
    settings_from_checkpoint,
)

__all__ = ["Qwen2VL", "Settings", "fitted_size", "read_settings", "settings_from_checkpoint"]

_KINDS = {"image": "pictures", "video": "videos"}
_SPECIAL_VARIABLES = ("bos", "eos", "pad", "unk")


class Qwen2VL:
    """Preprocessing, prompt layout and positions of Qwen2-VL.

    `tokens` must hold the ids "image" (the placeholder), "vision_end" and "eos" (what ends a turn), and
    for videos "video" (their placeholder);
    "bos", "pad" and "unk", where given, reach the chat template as bos_token and so on, and the text
    of every id given is refused in prompts.
    """

    name: str = "qwen2_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)

    __slots__ = (
        "_control",
        "_pixels",
        "_template",
        "_tokenizer",
        "_tokens",
        "_variables",
    )

    def __init__(
        self,
        settings: Settings,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        tokens: Mapping[str, int],
    ) -> None:
        """Put the parts together; `create` checks them first."""
        self._tokenizer = tokenizer
        self._template = template
        self._tokens = dict(tokens)
        self._pixels = Pixels(settings)
        self._variables = {
            f"{role}_token": str(tokenizer.id_to_token(tokens[role]))
            for role in _SPECIAL_VARIABLES
            if role in tokens
        }
        added = tokenizer.get_added_tokens_decoder()
        self._control = frozenset(tokens.values()).union(
            index
            for index, token in added.items()
            if token.special or token.content in template.source
        )

    @classmethod
    def create(
        cls,
        preprocessing: Mapping[str, Any],
        tokenizer: Tokenizer,
        chat_template: str,
        tokens: Mapping[str, int],
    ) -> "Qwen2VL":
        """Build from what a bundle holds; switches the tokenizer's truncation and padding off.

        Raises:
            BundleError: Settings that are wrong, or a token that is missing or that the tokenizer lacks.
            PromptError: A chat template that cannot be compiled.
        """
        settings = read_settings(preprocessing)
        for role in ("image", "vision_end", "eos"):
            if role not in tokens:
                raise BundleError(f"The bundle names no {role!r} token; export it again.")
        for role, index in tokens.items():
            if tokenizer.id_to_token(index) is None:
                raise BundleError(
                    f"The bundle's {role!r} token is {index}, which its tokenizer lacks; "
                    "export it again."
                )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(settings, tokenizer, ChatTemplate(chat_template), tokens)

    @staticmethod
    def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
        """Read a checkpoint's image settings; see the function of the same name."""
        return settings_from_checkpoint(folder)

    @property
    def settings(self) -> Settings:
        """How pictures become patches."""
        return self._pixels.settings

    def preprocess(self, pictures: Sequence[Image.Image]) -> Vision:
        """Resize, normalise and cut pictures; see `Pixels.preprocess`."""
        return self._pixels.preprocess(pictures)

    def preprocess_frames(self, frames: Sequence[Image.Image]) -> Vision:
        """Resize, normalise and cut the frames of one video; see `Pixels.preprocess_frames`."""
        return self._pixels.preprocess_frames(frames)

    def levels(self, pictures: Sequence[Image.Image]) -> Vision:
        """Resize pictures only; see `Pixels.levels`."""
        return self._pixels.levels(pictures)

    def levels_of_frames(self, frames: Sequence[Image.Image]) -> Vision:
        """Resize the frames of one video only; see `Pixels.levels_of_frames`."""
        return self._pixels.levels_of_frames(frames)

    def layout(self, prompt: str, vision: Vision) -> Prompt:
        """Put the pictures or the video and then `prompt` into one user turn, and place every token.

        The instruction is what stands between the last picture and the end of the user's turn;
        without pictures, the prompt's own tokens.

        Raises:
            PromptError: Empty, not text, with a control token in it, or refused by the template.
        """
        text = self._checked(prompt)
        kind = "video" if vision.moving else "image"
        if kind not in self._tokens:
            raise PromptError(
                f"The bundle names no {kind!r} token, so it takes no {_KINDS[kind]}; export it again."
            )
        rendered = self._rendered(text, kind, len(vision.grids))
        bos = self._variables.get("bos_token")
        encoding = self._tokenizer.encode(
            rendered, add_special_tokens=not (bos and rendered.startswith(bos))
        )
        ids = np.asarray(encoding.ids, dtype=np.int64)
        slots = np.flatnonzero(ids == self._tokens[kind])
        if len(slots) != len(vision.grids):
            raise PromptError(
                f"The chat template made {len(slots)} places for {len(vision.grids)} {_KINDS[kind]}; "
                "check the bundle's chat template."
            )
        lengths = np.ones_like(ids)
        lengths[slots] = [math.prod(grid) for grid in vision.grids]
        token_ids = np.repeat(ids, lengths)
        starts = np.cumsum(lengths) - lengths
        if len(slots):
            instruction = starts[self._after_pictures(ids)]
        else:
            instruction = _span(encoding, rendered, text)
        positions = _rotary_positions(lengths, slots, vision.grids)
        return Prompt(
            token_ids=token_ids,
            visual_index=np.flatnonzero(token_ids == self._tokens[kind]).astype(np.int64),
            instruction_index=instruction,
            position_ids=positions,
            next_position=int(positions.max()) + 1,
        )

    def _rendered(self, text: str, kind: str, count: int) -> str:
        """The conversation around `count` pictures or videos and the prompt."""
        content: list[dict[str, str]] = [{"type": kind} for _ in range(count)]
        content.append({"type": "text", "text": text})
        return self._template.render(
            [{"role": "user", "content": content}], variables=self._variables
        )

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
    lengths: NDArray[np.int64],
    slots: NDArray[np.intp],
    grids: Sequence[tuple[int, int, int]],
) -> NDArray[np.int64]:
    """Time, row and column of each token, int64 [3, T].

    Text counts on by one; a picture spans its grid from where it begins, and the text after it goes
    on behind its longer side.
    """
    steps = np.ones_like(lengths)
    steps[slots] = [max(rows, columns) for _, rows, columns in grids]
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
