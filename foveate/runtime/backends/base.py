"""What a pipeline asks of a backend: encode, embed, compress, merge, and begin a sequence."""

from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.families.base import Vision
from foveate.runtime.language.base import Batch, Extent, Sequence
from foveate.runtime.tensors import Feeds, Tensor, Value


class Backend(Protocol):
    """A bundle's graphs, opened by one library on one device; calls may come from several threads.

    Attributes:
        name: The library's.
        device: Where it runs.
        visual_tokens: The most visual tokens of one request.
        capacity: The most tokens of one sequence, prompt and answer together.
        remedy: How to raise these limits.
        batch: The most sequences that decode together; None for any number.
    """

    name: str
    device: str
    visual_tokens: int
    capacity: int
    remedy: str
    batch: int | None

    def encode(self, vision: Vision, meanwhile: Callable[[], None] | None = None) -> Value:
        """Visual tokens [N_v, H] of preprocessed pictures, on the device until the thread encodes again.

        Args:
            vision: The pictures.
            meanwhile: What the host does while the device encodes; what it raises is raised.

        Raises:
            BackendError: The backend refused the inputs or failed.
            ClosedError: The backend was closed.
        """
        ...

    def place(self, feeds: Feeds) -> Feeds:
        """Bring what `compress` takes beside the visual tokens to where it is read from.

        Args:
            feeds: Of the compressor graph, as `foveate.export.compressor` has them.

        Raises:
            BackendError: There is no memory for it.
        """
        ...

    def compress(self, feeds: Feeds) -> dict[str, Value]:
        """Run the compressor graph; outputs stay on the device.

        Args:
            feeds: What `place` gave, and `visual_embeds`.

        Returns:
            The graph's outputs; `inputs_embeds` and `kept_position_ids` may go on after the prompt.

        Raises:
            BackendError: The backend refused the inputs or failed.
            ClosedError: The backend was closed.
        """
        ...

    def embed(self, token_ids: NDArray[np.int64]) -> Tensor:
        """Embedding rows [N, H] of token ids int64 [N]."""
        ...

    def merge(
        self,
        text_embeds: Tensor,
        visual_embeds: Tensor,
        text_index: NDArray[np.int64],
        visual_index: NDArray[np.int64],
    ) -> Tensor:
        """The prompt with nothing dropped, [1, N_t + N_v, H].

        Args:
            text_embeds: [N_t, H], as `embed` gives them.
            visual_embeds: [N_v, H], as the vision graph gives them.
            text_index: int64 [N_t], where each text token stands.
            visual_index: int64 [N_v], where each visual token stands.
        """
        ...

    def start(self, capacity: int) -> Sequence:
        """Begin a sequence with an empty cache.

        Args:
            capacity: The most tokens it will hold, prompt and answer together.

        Raises:
            LimitError: More than the backend was built for.
            BackendError: No memory for it.
        """
        ...

    def start_batch(self, extents: Collection[Extent]) -> Batch:
        """Begin sequences that decode together, with an empty cache.

        Args:
            extents: What each of them is going to hold; one at least, and no more than `batch`.

        Raises:
            LimitError: More than the backend was built for.
            BackendError: No memory for it.
        """
        ...

    def close(self) -> None:
        """Free everything; closing twice is fine."""
        ...
