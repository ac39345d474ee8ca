"""What a pipeline asks of a language model: take tokens in, say what follows them."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.manifest import ModelFacts
from foveate.runtime.engines import Tensor
from foveate.runtime.engines.bindings import held


class Sequence(Protocol):
    """One sequence and its cache of keys and values; the prompt first, then a token at a time.

    Attributes:
        length: Tokens in the cache.
    """

    length: int

    def extend(self, embeds: Tensor, positions: Tensor, count: int) -> NDArray[np.float32]:
        """Take in `count` embedded tokens and give the logits of what follows them.

        Args:
            embeds: [1, S, H], of the graph's dtype.
            positions: int64 [A, 1, S], rotary positions; they need not be consecutive.
            count: S.

        Returns:
            float32 [V].
        """
        ...

    def step(self, token: int, position: int) -> NDArray[np.float32]:
        """Take in one token, at one position on every axis, and give the logits of what follows it."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that the cache holds now."""
        ...

    def close(self) -> None:
        """Give the cache back; closing twice is fine."""
        ...


def state_names(layers: int) -> list[str]:
    """The names of a cache's tensors, in the order in which decoder graphs take and give them."""
    return [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def token_bytes(model: ModelFacts, dtype: str) -> int:
    """Bytes of keys and values that a cache of the manifest's type `dtype` has for a token."""
    return 2 * model.layers * model.kv_heads * model.head_dim * held(dtype).itemsize
