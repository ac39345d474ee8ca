"""VILA1.5: every picture and frame resized to one square, 2 x 2 patches to a token, one axis of positions."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from tokenizers import Tokenizer

from foveate.errors import CheckpointError, ImageError, LimitError, PromptError
from foveate.families.base import (
    CheckpointForm,
    FrameRule,
    Medium,
    Message,
    PixelLimits,
    Prompt,
    Still,
    Video,
    VisualInput,
    opened,
)
from foveate.families.chat import ChatTemplate
from foveate.families.messages import Conversation
from foveate.families.pixels import check_frames, for_each, resize_bicubic, small_enough, to_rgb
from foveate.families.pooling import PooledGrid, pool_grid
from foveate.families.prompt import PromptLayout
from foveate.families.tiles import tiles_call, tiles_together
from foveate.families.vila_settings import (
    LANGUAGE,
    PROJECTOR,
    TOWER,
    PictureSettings,
    read_preprocessing,
    settings_from_checkpoint,
)

IMAGE, RESERVED = "<image>", "<|reserved_special_token_"
"""The token that stands for a picture; and, where the tokenizer has none, how those begin of which one does."""
END_OF_TURN = "<|eot_id|>"
LLAMA_3 = """\
{{ bos_token }}
{%- if messages[0].role != 'system' -%}
<|start_header_id|>system<|end_header_id|>

You are a helpful language and vision assistant. You are able to understand the visual content that \
the user provides, and assist the user with a variety of tasks using natural language.<|eot_id|>
{%- endif -%}
{%- for message in messages -%}
<|start_header_id|>{{ message.role }}<|end_header_id|>

{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<image>
{% elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|start_header_id|>assistant<|end_header_id|>

{% endif -%}
"""
"""VILA1.5's prompt around Llama 3, which its checkpoints leave to the program that runs them."""
MARKS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", END_OF_TURN)
"""The tokens that it needs."""


def image_token(tokenizer: Tokenizer) -> str | None:
    """The text of the token that stands for a picture in prompts; None where there is none that could."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    reserved = [text for text in added if text.startswith(RESERVED)]
    return (
        IMAGE if IMAGE in added else max(reserved, key=lambda text: (len(text), text), default=None)
    )


def choose_template(own: str | None, tokenizer: Callable[[], Tokenizer]) -> str | None:
    """A checkpoint's own chat template where it has places for pictures, else VILA1.5's where it fits.

    Raises:
        CheckpointError: The template writes a mark for pictures that is no token.
    """
    read = tokenizer()
    image = image_token(read)
    if own is not None and IMAGE in _shown(own):
        if image != IMAGE:
            raise CheckpointError(
                f"{LANGUAGE}: the chat template writes {IMAGE}, which is no added token of tokenizer.json; "
                "add it there as a special token"
            )
        return own
    fits = image is not None and all(read.token_to_id(mark) is not None for mark in MARKS)
    return LLAMA_3.replace(IMAGE, str(image)) if fits else None


def _shown(template: str) -> str:
    """What a chat template writes for a picture and a word; nothing where it refuses them."""
    content = [{"type": "image"}, {"type": "text", "text": "."}]
    with suppress(PromptError):
        return ChatTemplate(template).render([{"role": "user", "content": content}])
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SquareInput(VisualInput):
    """Pictures and videos of which each picture and frame gives as many tokens, unless they are pooled.

    Attributes:
        frames: Of each picture and video, in order, how many frames it has; 0 marks a picture.
        patches: Those of a picture.
    """

    frames: tuple[int, ...]
    patches: int

    def largest_run(self, together: int) -> int:
        """The patches of as many pictures as run together: the graph has a row for each until it gives tokens."""
        pictures = sum(max(count, 1) for count in self.frames)
        each = self.tokens // max(pictures, 1)
        return tiles_together(together, each, pictures) * self.patches if pictures else 0


class Vila:
    """Preprocessing, prompt layout and positions of VILA1.5; see `Family`.

    `tokens` must hold the id "image" (the placeholder); "bos", "eos", "pad" and "unk", where given, reach
    the chat template as bos_token and so on.
    """

    name: str = "vila"
    model_types: ClassVar[tuple[str, ...]] = ("llava_llama",)
    form: ClassVar[CheckpointForm] = CheckpointForm(
        LANGUAGE, (LANGUAGE, TOWER, PROJECTOR), choose_template, (END_OF_TURN,)
    )

    __slots__ = ("_frames", "_layout", "_levels", "settings")

    def __init__(
        self,
        preprocessing: Mapping[str, Any],
        tokenizer: Tokenizer,
        chat_template: str,
        tokens: Mapping[str, int],
        levels: bool = False,
    ) -> None:
        """Build from what a bundle holds; see `foveate.families.create`."""
        read = read_preprocessing(preprocessing)
        self.settings, self._frames, self._levels = read.images, read.videos.frames, levels
        self._layout = PromptLayout(tokenizer, chat_template, tokens, ("image",))

    @staticmethod
    def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
        """Read a checkpoint's settings; see the function called so."""
        return settings_from_checkpoint(folder)

    @property
    def frame_rule(self) -> FrameRule:
        """How many frames of a video file are taken: so many, evenly apart by number, whatever its length."""
        return FrameRule(frames=self._frames, least=1, multiple=1, by_number=True)

    def fit_frame(self, frame: Image, frames: int) -> Image:
        """A frame of a video, resized as `prepare` would; see `Family.fit_frame`."""
        return self._resized(frame)

    def limited(self, limits: PixelLimits) -> "Vila":
        """The same: limits are refused, as every picture is resized to one size.

        Raises:
            LimitError: There are limits.
        """
        if limits != PixelLimits():
            side = self.settings.side
            raise LimitError(
                f"VILA1.5 resizes every picture to {side} x {side} pixels; leave out min_pixels and max_pixels"
            )
        return self

    def plan(self, media: Sequence[Medium]) -> SquareInput:
        """What `prepare` gives but for its calls; see `Family.plan`."""
        frames = tuple(len(one.frames) if isinstance(one, Video) else 0 for one in media)
        for one in media:
            if isinstance(one, Video):
                check_frames(one.frames)
        boxes = token_boxes(self.settings)
        pictures = sum(max(count, 1) for count in frames)
        return SquareInput(
            calls=(),
            candidates=np.ones(pictures * len(boxes), np.bool_),
            picture=np.repeat(np.arange(pictures, dtype=np.int64), len(boxes)),
            boxes=np.tile(boxes, (pictures, 1)),
            frames=frames,
            patches=self.settings.grid**2,
        )

    def prepare(self, media: Sequence[Medium]) -> SquareInput:
        """Resize pictures and frames, and for graphs of pixels normalise them; see `Family.prepare`.

        Pixels are bit for bit those of the reference image processor. Transparent pictures are laid on
        white.
        """
        plan = self.plan(media)
        stills = [one for medium in media for one in _stills(medium)]
        if not stills:
            return plan
        side, each = self.settings.side, plan.tokens // len(stills)
        levels = np.empty((len(stills), side, side, 3), np.uint8)

        def write(number: int, still: Still) -> None:
            """Resize one picture to its place."""
            levels[number - 1] = np.asarray(self._resized(opened(still), number))

        for_each(write, stills, threads=small_enough(stills))
        call = tiles_call(levels, each, None if self._levels else self.settings.table)
        return replace(plan, calls=(call,))

    def shrink(self, media: Sequence[Medium], most: Sequence[int]) -> SquareInput:
        """Prepare pictures whose tokens are pooled to fewer; see `Family.shrink`."""
        if any(isinstance(medium, Video) for medium in media):
            raise ImageError("a video is not made smaller; leave it as it is")
        whole, across = self.prepare(media), self.settings.tokens_across
        grids = [pool_grid(across, across, count) for count in most]
        taps = max(grid.sources.shape[1] for grid in grids)
        rows, weights = zip(*(_taps(grid, taps) for grid in grids), strict=True)
        firsts = np.arange(len(grids)) * across**2
        return replace(
            whole,
            candidates=np.ones(sum(map(len, rows)), np.bool_),
            picture=np.repeat(np.arange(len(grids)), [len(one) for one in rows]),
            boxes=np.concatenate([pooled_boxes(self.settings, grid) for grid in grids]),
            rows=np.concatenate([one + first for one, first in zip(rows, firsts, strict=True)]),
            weights=np.concatenate(weights),
            pooled=True,
        )

    def layout(self, messages: Sequence[Message], visual: VisualInput) -> Prompt:
        """Render a conversation and place every token; see `Family.layout`."""
        assert isinstance(visual, SquareInput)
        conversation = Conversation.of(messages)
        kinds = ["video" if count else "image" for count in visual.frames]
        if conversation.kinds == kinds:
            shown = [max(count, 1) for count in visual.frames]
            messages, kinds = _by_frames(conversation, shown), ["image"] * sum(shown)
        counts = np.bincount(visual.picture, minlength=len(kinds)).tolist()
        return self._layout.place(messages, kinds, counts).counted()

    def _resized(self, picture: Image, number: int = 1) -> Image:
        """A picture as the vision tower takes it, called `number` where it is refused."""
        side = self.settings.side
        return resize_bicubic(to_rgb(picture, number), side, side)


def _stills(medium: Medium) -> Sequence[Still]:
    """A picture, or a video's frames."""
    return medium.frames if isinstance(medium, Video) else (medium,)


def _by_frames(conversation: Conversation, counts: Sequence[int]) -> list[Message]:
    """The messages with each picture or video as so many pictures."""
    left = iter(counts)
    return [
        {
            **message,
            "content": message["content"]
            if isinstance(message["content"], str)
            else [
                one
                for part in message["content"]
                for one in ([part] if part["type"] == "text" else [{"type": "image"}] * next(left))
            ],
        }
        for message in conversation.messages
    ]


@lru_cache(8)
def token_boxes(settings: PictureSettings) -> NDArray[np.float32]:
    """The part of its picture that each token shows, float32 [N, 4]: two patches each way, at the edge one."""
    across, patch, side = settings.tokens_across, settings.patch_size, settings.side
    row, column = np.indices((across, across)).reshape(2, -1)
    if settings.order == "columns":
        row, column = column, row
    edges = (
        np.minimum(place * 2 + end, settings.grid) * patch / side
        for end in (0, 2)
        for place in (column, row)
    )
    boxes = np.stack(list(edges), axis=-1).astype(np.float32)
    boxes.flags.writeable = False
    return boxes


def pooled_boxes(settings: PictureSettings, grid: PooledGrid) -> NDArray[np.float32]:
    """The part of its picture that each token of a pooled grid shows, float32 [N, 4]."""
    boxes = token_boxes(settings)[grid.sources]
    # Padding shows nothing.
    boxes = np.where((grid.weights > 0)[..., None], boxes, boxes[:, :1])
    return np.concatenate([boxes[..., :2].min(1), boxes[..., 2:].max(1)], axis=-1)


def _taps(grid: PooledGrid, taps: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A pooled grid's sources and weights [N, taps], with padding."""
    more = ((0, 0), (0, taps - grid.sources.shape[1]))
    return np.pad(grid.sources, more), np.pad(grid.weights, more)
