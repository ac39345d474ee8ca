"""What a pipeline asks of a language model: take tokens in, say what follows them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import ModelFacts
from foveate.runtime.tensors import Tensor, held


class Following:
    """What may follow a sequence; read where it lies when it is asked for, until the sequence goes on."""

    __slots__ = ("_best", "_logits", "_row")

    def __init__(
        self,
        logits: Callable[[], NDArray[np.float32]],
        best: Callable[[], NDArray[np.int64]] | None = None,
        row: int = 0,
    ) -> None:
        """Read one row.

        Args:
            logits: Gives float32 [B, V].
            best: Gives int64 [B], the tokens with the highest, where a graph has found them.
            row: Which of B.
        """
        self._logits, self._best, self._row = logits, best, row

    def logits(self) -> NDArray[np.float32]:
        """Every token's logit, float32 [V]."""
        found: NDArray[np.float32] = self._logits()[self._row]
        return found

    def best(self) -> int:
        """The token with the highest logit, of several the first."""
        return int(self.logits().argmax() if self._best is None else self._best()[self._row])


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
    ) -> Following:
        """Take in `count` embedded tokens and say what follows them.

        Args:
            embeds: [1, S, H], of the graph's dtype.
            positions: int64 [A, 1, S], rotary positions; they need not be consecutive.
            count: S.
            meanwhile: What the host does while the device computes, or before; what it raises is raised.
        """
        ...

    def step(self, token: int, position: int) -> Following:
        """Take in one token, at one position on every axis, and say what follows it."""
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

    def step(self, tokens: Step) -> dict[int, Following]:
        """Take in a token for each row that goes on, and say what follows in each.

        A row that was left out once has ended.
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

    def step(self, tokens: Step) -> dict[int, Following]:
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
