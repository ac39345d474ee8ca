"""What runs the language model: a kept prompt in, tokens out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import ModelFacts
from foveate.errors import LimitError
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.finite import DAMAGED, check_finite
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.sampling import Sampling
from foveate.runtime.stopping import Stop
from foveate.runtime.tensors import held

if TYPE_CHECKING:
    from foveate.runtime.language.prefix_cache import Prefix


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a language model can do; a request that needs more is refused.

    Attributes:
        batch: The most prompts at once; None for any number.
        most_tokens: The most tokens of one sequence, prompt and answer together.
        sampling: The fields of `Sampling` that are honoured.
        any_positions: Whether kept tokens keep their original positions.
        prefix_reuse: Whether a prompt may begin with keys and values of an earlier one.
    """

    batch: int | None
    most_tokens: int
    sampling: frozenset[str] = frozenset(Sampling.__dataclass_fields__)
    any_positions: bool = True
    prefix_reuse: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """How one prompt is answered, and what its sequence is going to hold.

    Attributes:
        prompt_tokens: Tokens of the kept prompt, T', or the most that it may have.
        next_position: The rotary position of the first generated token, on every axis.
        max_new_tokens: The most tokens of the answer, at least 1.
        stop_tokens: Token ids that end it.
        sampling: How tokens are chosen.
        stop: Says when it ends early.
    """

    prompt_tokens: int
    next_position: int
    max_new_tokens: int
    stop_tokens: frozenset[int]
    sampling: Sampling
    stop: Stop = field(default_factory=Stop)

    @property
    def most_tokens(self) -> int:
        """The most tokens of the sequence, prompt and answer together."""
        return self.prompt_tokens + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, or the end of an answer without one.

    Attributes:
        id: Its id; a stop token's where that ended the answer; None where it ended early.
        finish_reason: "stop" at a stop token, which is not part of the answer; "length" at the limit;
            "deadline" or "cancelled" where it ended early; None while the answer goes on.
    """

    id: int | None
    finish_reason: str | None


Step = Mapping[int, Token]
"""The tokens that one step gave, by the number of their prompt."""


class Run(Protocol):
    """Prompts being answered: iterate for the steps. The first step of each prompt is its prefill.

    Before each prefill and each decode step the `stop` of every prompt is asked. One that ends early gets
    a token without an id and gives its cache back at once; the others go on.

    Attributes:
        at: The number of the prompt that is worked on by itself, which an error is about; None while
            all decode together.
    """

    at: int | None

    def __iter__(self) -> Iterator[Step]:
        """The steps, once."""
        ...

    def cache_bytes(self, number: int) -> int:
        """Bytes of keys and values that the prompt's cache holds, or held at its end."""
        ...

    def cancel(self) -> None:
        """End after the step under way; from any thread."""
        ...

    def close(self) -> None:
        """Give all caches back; closing twice is fine."""
        ...


class LanguageModel(Protocol):
    """A language model, opened by one engine; `generate` may be called from several threads.

    Attributes:
        name: The engine's.
        capabilities: What it can do.
    """

    name: str
    capabilities: Capabilities

    def generate(
        self,
        prompts: Iterable[KeptPrompt | None],
        settings: Sequence[Generation],
        prefix: "Prefix | None" = None,
    ) -> Run:
        """Answer prompts; later tokens of all of them come together.

        Args:
            prompts: Taken one by one, each when the one before has its first token; None for one that
                ended early.
            settings: Of each prompt.
            prefix: What the only prompt begins with, and where its keys and values go; None where
                `capabilities.prefix_reuse` is False.

        Raises:
            LimitError: More tokens than the engine takes.
            BackendError: No memory for them.
        """
        ...

    def close(self) -> None:
        """Free everything; closing twice is fine."""
        ...


class NextLogits:
    """What may follow a sequence; read where it lies when it is asked for, until the sequence goes on.

    Nothing is chosen from logits that are not finite: whichever way they are read, that is a BackendError.
    """

    __slots__ = ("_advice", "_best", "_logits", "_row")

    def __init__(
        self,
        logits: Callable[[], NDArray[np.float32]],
        best: Callable[[], NDArray[Any]] | None = None,
        row: int = 0,
        advice: str = DAMAGED,
    ) -> None:
        """Read one row.

        Args:
            logits: Gives float32 [B, V].
            best: Gives float32 [B], where a graph has computed it: the argmax, or NaN where the logits may
                not be finite.
            row: Which of B.
            advice: What to do where the logits are not finite.
        """
        self._logits, self._best, self._row, self._advice = logits, best, row, advice

    def logits(self) -> NDArray[np.float32]:
        """Every token's logit, float32 [V].

        Raises:
            BackendError: One of them is not finite.
        """
        found: NDArray[np.float32] = self._logits()[self._row]
        check_finite(found, "the language model's logits", self._advice)
        return found

    def argmax(self) -> int:
        """The token with the highest logit, of several the first.

        Raises:
            BackendError: One of the logits is not finite.
        """
        if self._best is not None:
            best = float(self._best()[self._row])
            if not math.isnan(best):
                return int(best)
        return int(self.logits().argmax())


class KVCache(Protocol):
    """The caches of some sequences, a row each, and the decoder graph that fills them."""

    def prefill(self, row: int, prompt: KeptPrompt) -> NextLogits:
        """Take in a row's prompt, and say what follows it."""
        ...

    def decode(self, tokens: Mapping[int, tuple[int, int]]) -> dict[int, NextLogits]:
        """Take in a token for each row that goes on, and say what follows in each.

        Args:
            tokens: By row, the token and its rotary position on every axis. A row that was left out
                once has ended.
        """
        ...

    def nbytes(self, row: int) -> int:
        """Bytes of keys and values that a row holds now."""
        ...

    def release(self, row: int) -> None:
        """Give a row back; releasing twice is fine."""
        ...

    def discard(self) -> None:
        """Give all rows back, and let no later sequence find in memory what is not finite."""
        ...


class DecoderGraph(ABC):
    """A decoder graph in one engine, and the memory for its caches.

    Attributes:
        capabilities: What it can do.
        advice: What to do where the bundle's graphs give numbers that are not finite.
    """

    capabilities: Capabilities

    def __init__(
        self, engine: Any, dtype: str, model: ModelFacts, table: EmbeddingTable, advice: str
    ) -> None:
        """Drive an engine.

        Args:
            engine: What runs the graph.
            dtype: The caches' type, in the manifest's words.
            model: The decoder's sizes.
            table: Where tokens are looked up.
            advice: What to do where the bundle's graphs give numbers that are not finite.
        """
        self.engine, self.dtype, self.model, self.table = engine, dtype, model, table
        self.advice = advice
        self.names = state_names(model.layers)
        self.token_bytes = token_bytes(model, dtype)

    @abstractmethod
    def allocate(self, settings: Sequence[Generation]) -> KVCache:
        """Caches for sequences that decode together.

        Raises:
            LimitError: More tokens than the engine takes.
            BackendError: No memory for them.
        """

    def most_tokens(self, settings: Sequence[Generation]) -> int:
        """The most tokens of any sequence.

        Raises:
            LimitError: More than the decoder takes.
        """
        most, limit = max(one.most_tokens for one in settings), self.capabilities.most_tokens
        if most > limit:
            raise LimitError(
                f"the prompt and its answer take up to {most} tokens, and the decoder takes {limit}; "
                "ask for a shorter answer, or keep fewer visual tokens"
            )
        return most

    def close(self) -> None:
        """Free the graph and all memory."""
        self.engine.close()


def state_names(layers: int) -> list[str]:
    """The names of a cache's tensors, in the order in which decoder graphs take and give them."""
    return [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def token_bytes(model: ModelFacts, dtype: str) -> int:
    """Bytes of keys and values that a cache of the manifest's type `dtype` has for a token."""
    return 2 * model.layers * model.kv_heads * model.head_dim * held(dtype).itemsize
