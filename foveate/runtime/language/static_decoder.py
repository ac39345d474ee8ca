"""Decoders that write a KV cache of fixed length in place: a decode step is one call at fixed addresses."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import ModelFacts
from foveate.errors import BackendError, ClosedError, LimitError
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import DecoderGraph, Generation, NextLogits
from foveate.runtime.language.cache_pool import CacheMemory, CachePool
from foveate.runtime.tensors import Call, DeviceTensor, Feeds, Tensor, held, on_host

BEST = "best_or_nan"
"""A decoder's output float32 [B]: the argmax of the logits, or NaN where they may not be finite."""


class StaticDecoder(DecoderGraph):
    """A static decoder graph, and the caches that its sequences take turns with.

    Each form of decoder says how it is told where its caches are filled to.
    """

    def __init__(
        self, engine: Any, dtype: str, model: ModelFacts, table: EmbeddingTable, advice: str
    ) -> None:
        """Drive an `IoBoundEngine` or a `TensorRTEngine`; see `DecoderGraph`."""
        super().__init__(engine, dtype, model, table, advice)
        self.pool = CachePool(self.make, lambda memory: engine.forget(memory.states.values()))

    @abstractmethod
    def capacity(self, most: int) -> int:
        """The length of a cache for sequences of up to `most` tokens."""

    @abstractmethod
    def step_feeds(self, rows: int, capacity: int) -> Feeds:
        """A decode step's inputs beside embeddings and caches."""

    def outputs(self, rows: int) -> dict[str, DeviceTensor]:
        """Memory for a step's outputs beside the caches, where the engine does not take it itself."""
        return {}

    @abstractmethod
    def begin(self, settings: Sequence[Generation], memory: CacheMemory) -> Any:
        """Make a cache ready for sequences; what `write_step` and `run_prefill` need to know of them."""

    @abstractmethod
    def write_step(
        self,
        known: Any,
        call: Call,
        lengths: NDArray[np.int32],
        tokens: Mapping[int, tuple[int, int]],
    ) -> None:
        """Write a decode step's inputs beside the embeddings."""

    @abstractmethod
    def run_prefill(
        self, known: Any, memory: CacheMemory, row: int, prompt: KeptPrompt
    ) -> dict[str, DeviceTensor]:
        """Enqueue a row's prefill; gives the decoder's outputs."""

    def run_rest(
        self, memory: CacheMemory, prompt: KeptPrompt, states: Feeds, count: int
    ) -> dict[str, DeviceTensor]:
        """Run a sequence's prefill from token `count` on, where that can be done.

        Args:
            memory: Where its cache is written.
            prompt: All of it.
            states: Keys and values of its first `count` tokens, as long as the memory's.
            count: How many tokens they are.
        """
        raise BackendError("this decoder takes prompts from their beginning alone")

    def allocate(self, settings: Sequence[Generation]) -> "StaticCache":
        """Take a cache from the pool; see `DecoderGraph.allocate`."""
        memory = self.pool.take(len(settings), self.capacity(self.most_tokens(settings)))
        return StaticCache(self, memory, self.begin(settings, memory))

    def make(self, rows: int, capacity: int) -> CacheMemory:
        """Take memory for a cache, and bind the decode step to it."""
        shape = (rows, self.model.kv_heads, capacity, self.model.head_dim)
        states = {name: self.engine.zeros(shape, self.dtype) for name in self.names}
        feeds: Feeds = {
            "inputs_embeds": self.table.look_up(np.zeros(rows, np.int64))[:, None],
            **self.step_feeds(rows, capacity),
            **{f"past.{name}": state for name, state in states.items()},
        }
        into = {f"present.{name}": state for name, state in states.items()} | self.outputs(rows)
        step = self.engine.bind(feeds, into)
        prompts: tuple[dict[str, DeviceTensor], ...] = (dict(step.outputs),)
        if rows > 1:
            # Each row's part of the caches; what follows the prompts shares memory.
            own = self.outputs(1)
            prompts = tuple(
                {name: own.get(name) or one.row(row) for name, one in step.outputs.items()}
                for row in range(rows)
            )
        return CacheMemory(rows, capacity, states, step, prompts)


class StaticCache:
    """Sequences in the rows of one cache; see `KVCache`."""

    def __init__(self, decoder: StaticDecoder, memory: CacheMemory, known: Any) -> None:
        """Begin with nothing in the rows of `memory`."""
        self.decoder, self.memory, self.known = decoder, memory, known
        self.lengths = np.zeros(memory.rows, np.int32)
        self.open = set(range(memory.rows))

    def prefill(self, row: int, prompt: KeptPrompt) -> NextLogits:
        """Take in a row's prompt; see `KVCache.prefill`.

        Raises:
            LimitError: The cache has no room for it.
        """
        self._check_room({row: 0}, prompt.length)
        with self.decoder.engine.lock:
            outputs = self.decoder.run_prefill(self.known, self.memory, row, prompt)
            self.lengths[row] = prompt.length
        return self._next_logits(outputs, [0])[0]

    def decode(self, tokens: Mapping[int, tuple[int, int]]) -> dict[int, NextLogits]:
        """Take in a token for each row that goes on; see `KVCache.decode`.

        The other rows compute as well, on the slot after their last, which nobody reads.

        Raises:
            LimitError: A row's cache is full.
        """
        decoder, call = self.decoder, self.memory.step
        self._check_room({row: int(self.lengths[row]) for row in tokens}, 1)
        ids = np.zeros(self.memory.rows, np.int64)
        for row, (token, _) in tokens.items():
            ids[row] = token
        with decoder.engine.lock:
            decoder.write_step(self.known, call, self.lengths, tokens)
            call.inputs["inputs_embeds"].write(decoder.table.look_up(ids)[:, None])
            decoder.engine.repeat(call)
            self.lengths[list(tokens)] += 1
        return self._next_logits(call.outputs, tokens)

    def states(self) -> dict[str, Tensor]:
        """A copy of the only row's keys and values; see `ResumableCache.states`."""
        length = int(self.lengths[0])
        return {name: one.numpy()[:, :, :length].copy() for name, one in self.memory.states.items()}

    def resume(self, prompt: KeptPrompt, states: Mapping[str, Tensor], count: int) -> NextLogits:
        """Take in the only row's prompt after keys and values that are there; see `ResumableCache`.

        Raises:
            LimitError: The cache has no room for it.
        """
        self._check_room({0: 0}, prompt.length)
        filled: dict[str, Tensor] = {}
        for name, memory in self.memory.states.items():
            whole = np.zeros(memory.shape, held(memory.dtype))
            whole[:, :, :count] = on_host(states[name])[:, :, :count]
            filled[name] = whole
        with self.decoder.engine.lock:
            outputs = self.decoder.run_rest(self.memory, prompt, filled, count)
            self.lengths[0] = prompt.length
        return self._next_logits(outputs, [0])[0]

    def nbytes(self, row: int) -> int:
        """Bytes of keys and values that a row holds now; its memory has room for more."""
        return int(self.lengths[row]) * self.decoder.token_bytes

    def release(self, row: int) -> None:
        """Give a row back; the last one gives back the cache."""
        if row in self.open:
            self.open.remove(row)
            if not self.open:
                self.decoder.pool.give_back(self.memory)

    def discard(self) -> None:
        """End all rows, and keep the memory from the next sequences."""
        if self.open:
            self.open.clear()
            self.decoder.pool.drop(self.memory)

    def _next_logits(
        self, outputs: Mapping[str, DeviceTensor], rows: Iterable[int]
    ) -> dict[int, NextLogits]:
        """What follows in some rows of the outputs, which come to the host once, if at all."""
        logits = cache(outputs["logits"].numpy)
        best = cache(outputs[BEST].numpy) if BEST in outputs else None
        return {row: NextLogits(logits, best, row, self.decoder.advice) for row in rows}

    def _check_room(self, lengths: Mapping[int, int], more: int) -> None:
        """ClosedError for a row that was given back, LimitError for one without room for `more` tokens."""
        if not self.open.issuperset(lengths):
            raise ClosedError("a sequence is closed; begin another")
        longest, capacity = max(lengths.values()), self.memory.capacity
        if longest + more > capacity:
            raise LimitError(
                f"a sequence has {longest} tokens, and {more} more do not fit into its cache of "
                f"{capacity}; ask for a shorter answer, or keep fewer visual tokens"
            )
