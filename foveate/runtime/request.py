"""What is asked of a pipeline."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from foveate.errors import FoveateError
from foveate.families.base import Prompt, Vision
from foveate.runtime.answer import Timing
from foveate.runtime.language.base import Extent
from foveate.runtime.sampling import Sampling

Picture = str | os.PathLike[str] | bytes | Image | NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt about pictures or a video, and how it is to be answered.

    Attributes:
        prompt: The instruction.
        images: Paths, bytes, PIL images or uint8 arrays [H, W, 3]; the prompt comes after them.
        video: Frames of one size instead of pictures: a uint8 array [F, H, W, 3], or a list of
            what `images` takes. Two frames make one step in time.
        keep: A ratio in (0, 1] or a count of visual tokens; None takes the bundle's default.
        max_new_tokens: The most tokens to generate; None takes the bundle's default.
        temperature: 0 is greedy.
        top_p: Nucleus sampling's probability mass.
        top_k: Sample from this many best tokens only.
        seed: Makes sampling repeatable.
        repetition_penalty: None takes the checkpoint's own.
        stop_tokens: Token ids that end the answer, beside the checkpoint's own.
        ignore_eos: Go on past the checkpoint's own stop tokens, to `max_new_tokens`.
    """

    prompt: str
    _: KW_ONLY
    images: Iterable[Picture] | None = None
    video: Iterable[Picture] | None = None
    keep: float | int | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    stop_tokens: Iterable[int] = ()
    ignore_eos: bool = False


class Options(TypedDict, total=False):
    """The fields of `Request` beside its prompt, as `Pipeline.generate` and `stream` take them by name."""

    images: Iterable[Picture] | None
    video: Iterable[Picture] | None
    keep: float | int | None
    max_new_tokens: int | None
    temperature: float
    top_p: float
    top_k: int | None
    seed: int | None
    repetition_penalty: float | None
    stop_tokens: Iterable[int]
    ignore_eos: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """A request within all limits, prepared for the graphs.

    Attributes:
        vision: Its pictures or its video.
        prompt: Its tokens, with all visual ones.
        count: Visual tokens to keep.
        most: The most tokens to generate.
        sampling: How they are chosen.
        stops: Token ids that end the answer.
        timing: Seconds so far.
        began: `time.perf_counter()` when it was asked.
    """

    vision: Vision
    prompt: Prompt
    count: int
    most: int
    sampling: Sampling
    stops: frozenset[int]
    timing: Timing
    began: float

    @property
    def extent(self) -> Extent:
        """What the language model is going to hold of it."""
        length = len(self.prompt.token_ids) - self.vision.tokens + self.count
        return Extent(length, length + self.most, self.prompt.next_position)


@contextmanager
def naming(number: int) -> Iterator[None]:
    """Say in errors which request of a batch they are about."""
    try:
        yield
    except FoveateError as error:
        raise type(error)(f"requests[{number}]: {error}") from error
