"""What a pipeline asks of a language model: take tokens in, say what follows them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.manifest import ModelFacts
from foveate.runtime.engines import Tensor
from foveate.runtime.engines.bindings import held


class Sequence(Protocol):
    """One sequence and its cache of keys and values; the prompt first, then a token at a time."""

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        ...

    def extend(
        self,
        embeds: Tensor,
        positions: Tensor,
        count: int,
        meanwhile: Callable[[], None] | None = None,
    ) -> NDArray[np.float32]:
        """Take in `count` embedded tokens and give the logits of what follows them.

        Args:
            embeds: [1, S, H], of the graph's dtype.
            positions: int64 [A, 1, S], rotary positions; they need not be consecutive.
            count: S.
            meanwhile: What the host does while the device computes, or before; what it raises is raised.

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


@dataclass(frozen=True, slots=True)
class Extent:
    """What a sequence is going to hold.

    Attributes:
        prompt: Tokens of its prompt.
        capacity: The most tokens, prompt and answer together.
        position: The rotary position of the first token after the prompt, on every axis.
    """

    prompt: int
    capacity: int
    position: int


Step = Mapping[int, tuple[int, int]]
"""For each row that goes on, the token to take in and its rotary position on every axis."""


class Batch(Protocol):
    """Sequences in one cache, a row each: prompts are taken in row by row, later tokens together."""

    @property
    def rows(self) -> tuple[Sequence, ...]:
        """The sequences; they are extended one by one, and step with the batch alone."""
        ...

    def step(self, tokens: Step) -> dict[int, NDArray[np.float32]]:
        """Take in a token for each row that goes on; a row that was left out once has ended.

        Returns:
            By row, the logits float32 [V] of what follows.
        """
        ...

    def close(self) -> None:
        """Give the cache back; closing twice is fine."""
        ...


class Alone:
    """A batch of one sequence, for backends that run no more at once; see `Batch`."""

    def __init__(self, sequence: Sequence) -> None:
        """Make a batch of `sequence`."""
        self.rows = (sequence,)

    def step(self, tokens: Step) -> dict[int, NDArray[np.float32]]:
        """Take in one token; see `Batch.step`."""
        return {row: self.rows[row].step(*token) for row, token in tokens.items()}

    def close(self) -> None:
        """Give the cache back."""
        self.rows[0].close()


def state_names(layers: int) -> list[str]:
    """The names of a cache's tensors, in the order in which decoder graphs take and give them."""
    return [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def token_bytes(model: ModelFacts, dtype: str) -> int:
    """Bytes of keys and values that a cache of the manifest's type `dtype` has for a token."""
    return 2 * model.layers * model.kv_heads * model.head_dim * held(dtype).itemsize
