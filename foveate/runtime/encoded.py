"""Pictures that were encoded once, to be asked about many times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foveate.families.base import Family, Medium, Message, VisualInput
from foveate.runtime.tensors import Tensor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from foveate.runtime.answer import Answer
    from foveate.runtime.generation import Stream
    from foveate.runtime.pipeline import Pipeline
    from foveate.runtime.request import Options


@dataclass(frozen=True, slots=True)
class EncodedMedia:
    """Pictures or a video, and their visual tokens; `Pipeline.encode` makes one.

    Attributes:
        pipeline: Whose vision graph encoded them.
        family: The pipeline's, with the limits of their pixels.
        media: The pictures or the video.
        visual: They, prepared.
        embeds: Visual tokens [N_v, H], where the backend keeps them; None before they are encoded.
    """

    pipeline: "Pipeline"
    family: Family
    media: tuple[Medium, ...]
    visual: VisualInput
    embeds: Tensor | None = None

    def generate(self, prompt: str | Sequence[Message], **options: "Unpack[Options]") -> "Answer":
        """Answer a prompt about them; see `Pipeline.generate`."""
        options["encoded"] = self
        return self.pipeline.generate(prompt, **options)

    def stream(self, prompt: str | Sequence[Message], **options: "Unpack[Options]") -> "Stream":
        """Answer a prompt about them piece by piece; see `Pipeline.stream`."""
        options["encoded"] = self
        return self.pipeline.stream(prompt, **options)

    def rank(self, prompt: str | Sequence[Message]) -> NDArray[np.float32]:
        """Score their visual tokens by a prompt, without an answer; see `Pipeline.rank`."""
        return self.pipeline.rank(prompt, self)

    def smaller(self, most: Sequence[int]) -> "EncodedMedia":
        """The same pictures with fewer visual tokens each; see `Pipeline.shrink`."""
        return self.pipeline.shrink(self, most)
