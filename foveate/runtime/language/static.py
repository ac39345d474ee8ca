"""A decoder on a GPU whose cache has fixed memory, written in place: a token is a CUDA graph launch."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import ModelFacts
from foveate.errors import ClosedError, LimitError
from foveate.runtime.backends.trt.cuda import Block, DeviceTensor
from foveate.runtime.backends.trt.engine import Call, TensorRTEngine
from foveate.runtime.backends.trt.ranges import largest
from foveate.runtime.backends.trt.tensor_specs import WRITE_INDICES
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.language.base import Following, state_names, token_bytes
from foveate.runtime.language.growing_decoder import check_capacity
from foveate.runtime.tensors import Tensor

SPARE = 2
"""Caches that are kept for the next sequences."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Memory for one sequence at a time, and the call that adds a token to it.

    Attributes:
        states: Keys and values [1, kv_heads, capacity, head_dim], by input of the decoder.
        blocks: Their memory by output of the decoder: it is read and written in the same place.
        step: The decoder bound for one token.
    """

    states: dict[str, DeviceTensor]
    blocks: dict[str, Block]
    step: Call


class StaticDecoder:
    """A bundle's static decoder on a GPU, and the caches that its sequences take turns with.

    Attributes:
        capacity: The most tokens that a sequence may hold.
    """

    def __init__(self, engine: TensorRTEngine, model: ModelFacts, table: EmbeddingTable) -> None:
        """Drive `engine`, a static decoder of the sizes in `model`; tokens are looked up in `table`."""
        self.engine, self.model, self.table, self.gpu = engine, model, table, engine.gpu
        self.names = state_names(model.layers)
        specs = {spec.name: spec for spec in engine.inputs}
        self.token_bytes = token_bytes(model, specs["past.0.key"].dtype)
        self.axes = int(specs["position_ids"].shape[0])
        self.capacity = largest(engine.variant, "past.0.key", 2)
        self.lock = threading.Lock()
        self.spare: list[Cache] = []

    def start(self, capacity: int) -> "StaticSequence":
        """Begin a sequence of at most `capacity` tokens, with a cache that holds nothing but zeros.

        Raises:
            LimitError: More than the engine takes.
            BackendError: No memory for it.
        """
        check_capacity(capacity, self.capacity, self.engine)
        with self.lock:
            cache = self.spare.pop() if self.spare else None
        cache = cache or self.make()
        for state in cache.states.values():
            self.gpu.clear(state)
        return StaticSequence(self, cache)

    def make(self) -> Cache:
        """Take memory for a cache, and bind it."""
        sizes = (1, self.model.kv_heads, self.capacity, self.model.head_dim)
        dtype = self.engine.dtype("past.0.key")
        states = {f"past.{name}": self.gpu.empty(sizes, dtype) for name in self.names}
        blocks = {f"present.{name}": states[f"past.{name}"].block for name in self.names}
        feeds = {
            "inputs_embeds": self.gpu.upload(self.table.look_up(np.zeros(1, np.int64))[None]),
            "position_ids": self.gpu.upload(np.zeros((self.axes, 1, 1), np.int64)),
            WRITE_INDICES: self.gpu.upload(np.zeros(1, np.int64)),
        }
        return Cache(states, blocks, self.engine.bind({**feeds, **states}, blocks))

    def give_back(self, cache: Cache) -> None:
        """Keep a cache for the next sequence, where there are not enough."""
        with self.lock:
            if len(self.spare) < SPARE:
                self.spare.append(cache)


class StaticSequence:
    """A sequence in a cache of fixed length; see `Sequence`."""

    def __init__(self, decoder: StaticDecoder, cache: Cache) -> None:
        """Begin with nothing in the cache."""
        self.decoder = decoder
        self.cache: Cache | None = cache
        self.length = 0

    def extend(
        self,
        embeds: Tensor,
        positions: Tensor,
        count: int,
        meanwhile: Callable[[], None] | None = None,
    ) -> Following:
        """Take in `count` embedded tokens; see `Sequence.extend`.

        Raises:
            LimitError: The cache has no room for them, or the engine does not take as many at once.
        """
        cache, decoder = self._with_room(count), self.decoder
        if meanwhile is not None:
            meanwhile()
        with decoder.gpu.lock:
            place = cache.step.inputs[WRITE_INDICES]
            decoder.gpu.write(place, np.array([self.length], np.int64))
            outputs = decoder.engine.run(
                {
                    "inputs_embeds": embeds,
                    "position_ids": positions,
                    WRITE_INDICES: place,
                    **cache.states,
                },
                cache.blocks,
                repeats=self.length == 0,
            )
            logits: NDArray[np.float32] = outputs["logits"].numpy()
        self.length += count
        return Following(lambda: logits)

    def step(self, token: int, position: int) -> Following:
        """Take in one token; see `Sequence.step`.

        Raises:
            LimitError: The cache is full.
        """
        cache, decoder = self._with_room(1), self.decoder
        written = {
            "inputs_embeds": decoder.table.look_up(np.array([token], np.int64))[None],
            "position_ids": np.full((decoder.axes, 1, 1), position, np.int64),
            WRITE_INDICES: np.array([self.length], np.int64),
        }
        with decoder.gpu.lock:
            for name, array in written.items():
                decoder.gpu.write(cache.step.inputs[name], array)
            decoder.engine.repeat(cache.step)
            logits: NDArray[np.float32] = cache.step.outputs["logits"].numpy()
        self.length += 1
        return Following(lambda: logits)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that the cache holds now; its memory has room for more."""
        return self.length * self.decoder.token_bytes

    def close(self) -> None:
        """Give the cache back."""
        cache, self.cache = self.cache, None
        if cache is not None:
            self.decoder.give_back(cache)

    def _with_room(self, count: int) -> Cache:
        """The cache, if it has room for `count` tokens more and was not given back."""
        if self.cache is None:
            raise ClosedError("the sequence is closed; begin another")
        most = self.decoder.capacity
        if self.length + count > most:
            raise LimitError(
                f"the sequence has {self.length} tokens, {count} more do not fit into the {most} that "
                f"the engine for {self.decoder.engine.variant.target} takes; ask for a shorter answer, "
                "or keep fewer visual tokens"
            )
        return self.cache
