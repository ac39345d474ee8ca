"""Decoders that write a KV cache of fixed length in place: a decode step is one call at fixed addresses."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np

from foveate.bundle.manifest import ModelFacts
from foveate.errors import ClosedError, LimitError
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import (
    Capabilities,
    Generation,
    NextLogits,
    state_names,
    token_bytes,
)
from foveate.runtime.language.cache_pool import CacheMemory, CachePool
from foveate.runtime.tensors import Call, DeviceTensor, Feeds


class StaticEngine(Protocol):
    """An engine that runs a graph at fixed addresses."""

    @property
    def lock(self) -> Any:
        """Held by the thread that runs it."""
        ...

    def bind(self, feeds: Feeds, into: Mapping[str, DeviceTensor], *, captured: bool) -> Call:
        """Fix where inputs and outputs lie, without running."""
        ...

    def repeat(self, call: Call) -> None:
        """Enqueue a bound call on what is in its memory now."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """Memory on the device for a tensor of zeros."""
        ...

    def forget(self, tensors: Collection[DeviceTensor]) -> None:
        """Let go of captured calls that read or write these tensors."""
        ...

    def close(self) -> None:
        """Free the graph."""
        ...


class CacheInputs(Protocol):
    """How one form of static decoder is told where its caches are filled to."""

    @property
    def engine(self) -> StaticEngine:
        """The decoder."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What the decoder can do."""
        ...

    @property
    def dtype(self) -> str:
        """The caches' type, in the manifest's words."""
        ...

    def capacity(self, most: int) -> int:
        """The length of a cache for sequences of up to `most` tokens."""
        ...

    def step_feeds(self, rows: int, capacity: int) -> Feeds:
        """A decode step's inputs beside embeddings and caches."""
        ...

    def outputs(self, rows: int) -> dict[str, DeviceTensor]:
        """Memory for a step's outputs beside the caches, where the engine does not take it itself."""
        ...

    def begin(self, settings: Sequence[Generation], memory: CacheMemory) -> Any:
        """Make a cache ready for sequences; what `write_step` and `prefill` need to know of them."""
        ...

    def write_step(
        self, known: Any, call: Call, lengths: Any, tokens: Mapping[int, tuple[int, int]]
    ) -> None:
        """Write a decode step's inputs beside the embeddings."""
        ...

    def prefill(
        self, known: Any, memory: CacheMemory, row: int, prompt: KeptPrompt
    ) -> dict[str, DeviceTensor]:
        """Enqueue a row's prefill; gives the decoder's outputs."""
        ...


class StaticDecoder:
    """A static decoder graph, and the caches that its sequences take turns with; see `DecoderGraph`."""

    def __init__(self, inputs: CacheInputs, model: ModelFacts, table: EmbeddingTable) -> None:
        """Drive a decoder of the sizes in `model`; tokens are looked up in `table`."""
        self.inputs, self.model, self.table = inputs, model, table
        self.engine, self.capabilities = inputs.engine, inputs.capabilities
        self.names = state_names(model.layers)
        self.token_bytes = token_bytes(model, inputs.dtype)
        self.pool = CachePool(self.make, lambda memory: self.engine.forget(memory.states.values()))

    def allocate(self, settings: Sequence[Generation]) -> "StaticCache":
        """Take a cache from the pool; see `DecoderGraph.allocate`."""
        most, limit = max(one.most_tokens for one in settings), self.capabilities.most_tokens
        if most > limit:
            raise LimitError(
                f"the prompt and its answer take up to {most} tokens, and the decoder takes {limit}; "
                "ask for a shorter answer, or keep fewer visual tokens"
            )
        memory = self.pool.take(len(settings), self.inputs.capacity(most))
        return StaticCache(self, memory, self.inputs.begin(settings, memory))

    def make(self, rows: int, capacity: int) -> CacheMemory:
        """Take memory for a cache, and bind the decode step to it."""
        model, engine = self.model, self.engine
        shape = (rows, model.kv_heads, capacity, model.head_dim)
        states = {name: engine.zeros(shape, self.inputs.dtype) for name in self.names}
        feeds: Feeds = {
            "inputs_embeds": self.table.look_up(np.zeros(rows, np.int64))[:, None],
            **self.inputs.step_feeds(rows, capacity),
            **{f"past.{name}": state for name, state in states.items()},
        }
        present = {f"present.{name}": state for name, state in states.items()}
        step = engine.bind(feeds, {**present, **self.inputs.outputs(rows)}, captured=True)
        return CacheMemory(rows, capacity, states, step, self.prompts(rows, step.outputs))

    def prompts(
        self, rows: int, outputs: Mapping[str, DeviceTensor]
    ) -> tuple[dict[str, DeviceTensor], ...]:
        """Each row's part of what a step of all rows writes; what follows their prompts shares memory."""
        if rows == 1:
            return (dict(outputs),)
        own = self.inputs.outputs(1)
        return tuple(
            {name: own.get(name) or tensor.row(row) for name, tensor in outputs.items()}
            for row in range(rows)
        )

    def close(self) -> None:
        """Free the graph."""
        self.engine.close()


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
            outputs = self.decoder.inputs.prefill(self.known, self.memory, row, prompt)
            self.lengths[row] = prompt.length
        return next_logits(outputs, [0])[0]

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
            decoder.inputs.write_step(self.known, call, self.lengths, tokens)
            call.inputs["inputs_embeds"].write(decoder.table.look_up(ids)[:, None])
            decoder.engine.repeat(call)
            self.lengths[list(tokens)] += 1
        return next_logits(call.outputs, tokens)

    def nbytes(self, row: int) -> int:
        """Bytes of keys and values that a row holds now; its memory has room for more."""
        return int(self.lengths[row]) * self.decoder.token_bytes

    def release(self, row: int) -> None:
        """Give a row back; the last one gives back the cache."""
        if row in self.open:
            self.open.remove(row)
            if not self.open:
                self.decoder.pool.give_back(self.memory)

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


def next_logits(outputs: Mapping[str, DeviceTensor], rows: Iterable[int]) -> dict[int, NextLogits]:
    """What follows in some rows of a decoder's outputs, which come to the host once, if at all."""
    logits = cache(outputs["logits"].numpy)
    best = cache(outputs["best"].numpy) if "best" in outputs else None
    return {row: NextLogits(logits, best, row) for row in rows}
