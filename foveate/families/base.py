"""What the runtime asks of a model family: pictures to arrays, and a prompt to tokens and positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from foveate.errors import ImageError


@dataclass(frozen=True, slots=True)
class Vision:
    """Pictures made ready for the vision graph.

    Attributes:
        feeds: The vision graph's inputs by name.
        grids: For each picture (frames, rows, columns) of its visual tokens, in token order.
        sizes: For each picture (height, width) in pixels, after resizing.
        runs: For a graph that takes a picture at a time, its inputs by picture; `feeds` is empty then.
        moving: Whether it is one video, whose frames stand in the first entry of `grids`.
    """

    feeds: dict[str, NDArray[np.generic]]
    grids: tuple[tuple[int, int, int], ...]
    sizes: tuple[tuple[int, int], ...]
    runs: tuple[dict[str, NDArray[np.generic]], ...] = ()
    moving: bool = False

    @property
    def tokens(self) -> int:
        """Number of visual tokens of all pictures together."""
        return sum(frames * rows * columns for frames, rows, columns in self.grids)


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
        """Where in the sequence the text tokens stand, int64 [T - N_v]."""
        text = np.ones(len(self.token_ids), dtype=bool)
        text[self.visual_index] = False
        return np.flatnonzero(text)

    def compressor_feeds(self, keep: int) -> dict[str, NDArray[np.int64]]:
        """What a compressor graph takes beside the embeddings, to keep so many visual tokens.

        Returns:
            text_index [N_t], visual_index [N_v], instruction_rows [N_u] (rows among the text's),
            position_ids [A, T] and keep [1], all int64.
        """
        text_index = self.text_index
        return {
            "text_index": text_index,
            "visual_index": self.visual_index,
            "instruction_rows": np.searchsorted(text_index, self.instruction_index),
            "position_ids": self.position_ids,
            "keep": np.array([keep], dtype=np.int64),
        }


class Family(Protocol):
    """One family of multimodal language models."""

    name: str

    def preprocess(self, pictures: Sequence[Image]) -> Vision:
        """Resize, normalise and cut pictures as the checkpoint's own processor does.

        Raises:
            ImageError: A picture that the family cannot take.
        """

    def levels(self, pictures: Sequence[Image]) -> Vision:
        """Resize pictures only, for vision graphs that normalise and cut them themselves.

        Raises:
            ImageError: A picture that the family cannot take.
        """

    def layout(self, prompt: str, vision: Vision) -> Prompt:
        """Render the chat template around `prompt`, tokenize it and place every token.

        Raises:
            PromptError: Empty, or with the text of a control token in it.
        """


@runtime_checkable
class VideoFamily(Protocol):
    """A family that also takes a video."""

    def preprocess_frames(self, frames: Sequence[Image]) -> Vision:
        """Resize, normalise and cut the frames of one video, all of one size.

        Raises:
            ImageError: Frames that the family cannot take.
        """

    def levels_of_frames(self, frames: Sequence[Image]) -> Vision:
        """Resize the frames of one video only, as `Family.levels` does pictures.

        Raises:
            ImageError: Frames that the family cannot take.
        """


def preprocess_frames(family: Family, frames: Sequence[Image], apart: bool = False) -> Vision:
    """Prepare the frames of one video.

    Args:
        family: The family.
        frames: All of one size.
        apart: Only resize them, for vision graphs that normalise and cut them themselves.

    Raises:
        ImageError: Frames that the family cannot take, or a family that takes pictures alone.
    """
    if not isinstance(family, VideoFamily):
        raise ImageError(f"{family.name} takes pictures and no video; give the frames as pictures")
    return (family.levels_of_frames if apart else family.preprocess_frames)(frames)
