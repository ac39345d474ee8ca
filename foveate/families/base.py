"""What the runtime asks of a model family: pictures to graph inputs, messages to tokens and positions."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from tokenizers import Tokenizer

Empty = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]
"""Gives an array of a shape and dtype with any values in it."""
Message = Mapping[str, Any]
"""A turn of a conversation, as chat templates take it: {"role": ..., "content": text or parts}."""


@dataclass(frozen=True, slots=True)
class UnopenedPicture:
    """A picture whose size is known, and whose pixels are decoded when they are wanted.

    Attributes:
        size: Width and height, as it is shown upright.
        open: Decodes it; each call does so anew.
    """

    size: tuple[int, int]
    open: Callable[[], Image]


Still = Image | UnopenedPicture


def opened(still: Still) -> Image:
    """A picture's pixels.

    Raises:
        ImageError: It cannot be decoded.
    """
    return still.open() if isinstance(still, UnopenedPicture) else still


@dataclass(frozen=True, slots=True)
class Video:
    """A video as its frames, in order and all of one size."""

    frames: tuple[Still, ...]


Medium = Still | Video


@dataclass(frozen=True, slots=True)
class FrameRule:
    """How many frames of a video file a family takes.

    Attributes:
        fps: Frames for each second, where the caller asks for no other rate.
        frames: How many instead, where the caller asks for no rate; None goes by `fps`.
        least: The fewest, where the film has so many.
        most: The most.
        multiple: Their number is rounded down to a multiple of this.
        by_number: Whether they are evenly apart by their number in the film, rather than in time.
    """

    fps: float = 2.0
    frames: int | None = None
    least: int = 4
    most: int = 768
    multiple: int = 2
    by_number: bool = False

    def count(self, seconds: Fraction, there: int, fps: Fraction | None = None) -> int:
        """How many frames to take.

        Args:
            seconds: How long the film lasts.
            there: How many frames it has, at least one.
            fps: The caller's rate; None takes the rule's own.
        """
        most = min(self.most, there)
        if fps is None and self.frames is not None:
            wanted = self.frames
        else:
            rate = Fraction(str(self.fps)) if fps is None else fps
            wanted = max(int(seconds * rate), self.least)
        count = min(wanted, most)
        return max(count - count % self.multiple, min(most, 1))


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """What a request asks of the size of its pictures and frames; None is the checkpoint's own.

    Attributes, whole numbers from 1 on:
        min_pixels: Smaller ones are enlarged to about this area.
        max_pixels: Larger ones are shrunk to at most this area; where it alone is given, below the
            checkpoint's own min_pixels, none is enlarged.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One run of the vision graph.

    A family whose graph takes padding, or a video in parts, overrides `padded` and `parts`; one whose
    graph gives more rows than are real, `rows`.

    Attributes:
        inputs: The graph's inputs by name.
        tokens: How many rows of its output are real; they are the first.
    """

    inputs: Mapping[str, NDArray[Any]]
    tokens: int

    @property
    def rows(self) -> int:
        """Rows of the graph's output, those among them that are not real; without padding."""
        return self.tokens

    @property
    def shapes(self) -> Hashable:
        """The shapes of all inputs: calls alike in them run the same kernels."""
        return tuple((name, array.shape) for name, array in self.inputs.items())

    def padded(self, tokens: int, empty: Empty) -> "Call":
        """The same call with padding up to `tokens` rows of output, where the graph takes padding.

        Args:
            tokens: Rows of output, real ones and padding; at least `self.tokens`.
            empty: Where large padded inputs may be written.
        """
        return self

    def parts(self, most: int) -> "tuple[Call, ...]":
        """The call cut into runs of few different shapes, each of at most about `most` rows of output."""
        return (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualInput:
    """Pictures and videos in the order of the messages, ready for the vision graph.

    The rows of all calls' outputs, concatenated without padding, are the visual tokens; or, where
    `rows` and `weights` are given, token i is Σ_k weights[i, k] · output[rows[i, k]].

    Attributes:
        calls: The runs of the vision graph.
        candidates: bool [N_v], which tokens may be dropped; the others are always kept.
        picture: int64 [N_v], the picture or video frame that a token shows; of several frames the first.
        boxes: float32 [N_v, 4], the part that it shows: left, top, right, bottom from 0 to 1. Boxes
            may overlap; that of a token that shows nothing, such as a newline, is empty.
        rows: int64 [N_v, K], or None.
        weights: float32 [N_v, K], 0 for padding; or None.
        pooled: Whether the tokens are fewer than the family gives, each the mean of any number of rows;
            no graph of a bundle sums those.
    """

    calls: tuple[Call, ...]
    candidates: NDArray[np.bool_]
    picture: NDArray[np.int64]
    boxes: NDArray[np.float32]
    rows: NDArray[np.int64] | None = None
    weights: NDArray[np.float32] | None = None
    pooled: bool = False

    @property
    def tokens(self) -> int:
        """Number of visual tokens N_v of all pictures together."""
        return len(self.picture)

    def largest_run(self, together: int) -> int:
        """The rows of the largest run of the vision graph: a picture, or small ones of `together` rows.

        A family whose pictures are cut into parts overrides it.
        """
        pictures = np.unique(self.picture, return_counts=True)[1]
        return int(max(pictures.max(initial=0), min(self.tokens, together)))

    @property
    def output_rows(self) -> int:
        """Rows of the vision graph's output, of all runs together."""
        return self.tokens if self.rows is None else int(self.rows.max(initial=-1)) + 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as the language model sees it before anything is dropped.

    Attributes:
        token_ids: int64 [T]; visual placeholders included.
        visual_index: int64 [N_v]; where in the sequence the visual tokens stand.
        instruction_index: int64 [N_u]; where the user's instruction stands (E_u of the paper).
        position_ids: int64 [A, T]; A rotary axes (3 for m-rope, 1 otherwise).
        next_position: The position of the first generated token, on every axis.
    """

    token_ids: NDArray[np.int64]
    visual_index: NDArray[np.int64]
    instruction_index: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    next_position: int

    @property
    def text_index(self) -> NDArray[np.int64]:
        """Where in the sequence the text tokens stand, int64 [N_t]."""
        text = np.ones(len(self.token_ids), dtype=bool)
        text[self.visual_index] = False
        return np.flatnonzero(text)

    def kept_index(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the text and the visual tokens of ordinals `kept` int64 [K] stand, int64 [T'], ascending."""
        return np.sort(np.concatenate([self.text_index, self.visual_index[kept]]))

    def length_with(self, visual: int) -> int:
        """How many tokens are left with so many of the visual ones."""
        return len(self.token_ids) - len(self.visual_index) + visual

    @property
    def instruction_rows(self) -> NDArray[np.int64]:
        """Which of the text tokens are the instruction, int64 [N_u]."""
        return np.searchsorted(self.text_index, self.instruction_index)


def own_template(own: str | None, tokenizer: Callable[[], Tokenizer]) -> str | None:
    """The chat template that a checkpoint holds, as it is."""
    return own


@dataclass(frozen=True, slots=True)
class CheckpointForm:
    """How a family's checkpoints are laid out, and what they leave to the program that runs them.

    Attributes:
        text: The folder inside the checkpoint's that has the tokenizer, the chat template and
            generation_config.json; "" is the checkpoint's own.
        weights: The folders inside it that have weights, each with its config.json.
        template: Gives the chat template to use, or None where there is none, by the one that the
            checkpoint holds, or None, and what reads its tokenizer.
        ends: Texts of tokens that end an answer whatever the checkpoint's settings say, where its
            tokenizer has them.
    """

    text: str = ""
    weights: tuple[str, ...] = ("",)
    template: Callable[[str | None, Callable[[], Tokenizer]], str | None] = own_template
    ends: tuple[str, ...] = ()


class Family(Protocol):
    """One family of multimodal language models, set up with what one bundle holds."""

    name: str
    model_types: ClassVar[tuple[str, ...]]
    form: ClassVar[CheckpointForm]

    def __init__(
        self,
        preprocessing: Mapping[str, Any],
        tokenizer: Tokenizer,
        chat_template: str,
        tokens: Mapping[str, int],
        levels: bool = False,
    ) -> None: ...

    @staticmethod
    def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
        """Read a checkpoint's preprocessing settings; see the registry's function of the same name."""
        ...

    @property
    def frame_rule(self) -> FrameRule:
        """How many frames of a video file the family takes."""
        ...

    def fit_frame(self, frame: Image, frames: int) -> Image:
        """A frame of a video of so many, as small as `prepare` makes it, which then gives the same.

        Raises:
            ImageError: A frame that the family cannot take.
        """
        ...

    def limited(self, limits: PixelLimits) -> "Family":
        """The same family with a request's limits of pictures and frames in place of the checkpoint's.

        Raises:
            LimitError: Limits that there cannot be.
        """
        ...

    def plan(self, media: Sequence[Medium]) -> VisualInput:
        """What `prepare` gives, but without calls: what sizes alone tell; no picture is opened.

        Raises:
            ImageError: A picture or video that the family cannot take.
        """
        ...

    def prepare(self, media: Sequence[Medium]) -> VisualInput:
        """Turn pictures and videos into what the bundle's vision graph takes.

        Args:
            media: In the order of the messages; any number, also none.

        Raises:
            ImageError: A picture or video that the family cannot take.
        """
        ...

    def shrink(self, media: Sequence[Medium], most: Sequence[int]) -> VisualInput:
        """Prepare pictures that give fewer visual tokens: what a smaller picture tells.

        A family whose tokens go by a picture's size makes it smaller, its aspect kept; one whose
        number is fixed pools the grid of tokens (`pooling`).

        Args:
            media: At least one picture.
            most: The most visual tokens of each, at least one.

        Raises:
            ImageError: A picture that the family cannot take, or a video that it does not make smaller.
        """
        ...

    def layout(self, messages: Sequence[Message], visual: VisualInput) -> Prompt:
        """Render the chat template around messages, tokenize them and place every token.

        Args:
            messages: The conversation; parts of type "image" and "video" stand for `visual`'s media.
                A last message of the assistant's is gone on with. The instruction is the last user
                turn's text after its last picture, or else all its text.
            visual: What `prepare` gave for them.

        Raises:
            PromptError: Messages that are none, no instruction, text that makes a control token,
                other media than `visual` has, or a template that refuses the messages.
        """
        ...


def user_turn(text: str, media: Sequence[Medium]) -> list[Message]:
    """A conversation of one turn: pictures and videos first, then the text."""
    kinds = ["video" if isinstance(medium, Video) else "image" for medium in media]
    content: list[dict[str, str]] = [{"type": kind} for kind in kinds]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
