"""A decoder that writes its cache in place: fixed memory, a token a CUDA graph launch."""

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.errors import LimitError
from foveate.manifest import ModelFacts
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.engines import Tensor
from foveate.runtime.engines.bound import BoundEngine, BoundTensor, Call
from foveate.runtime.language.base import state_names, token_bytes

STEP = 256
"""Caches are as long as a multiple of this."""
BUCKET, BUCKETED = 128, 1024
"""Prompts of up to BUCKETED tokens are run as a multiple of BUCKET: what is padded comes after them,
where they do not look, and lengths that repeat become CUDA graphs. Longer ones keep the GPU busy."""
SPARE = 2


@dataclass(frozen=True, slots=True)
class Cache:
    """Memory for one sequence at a time, and the call that adds a token to it.

    Attributes:
        capacity: Tokens that it has room for.
        states: Keys and values by name, [1, kv_heads, capacity, head_dim].
        step: The decoder bound for one token.
    """

    capacity: int
    states: dict[str, BoundTensor]
    step: Call


class SharedDecoder:
    """The language model of a fused bundle, and the caches that its sequences take turns with."""

    def __init__(self, engine: BoundEngine, model: ModelFacts, table: EmbeddingTable, most: int):
        """Drive `engine`, a decoder of the sizes in `model`, for sequences of up to `most` tokens."""
        self.engine, self.model, self.table, self.most = engine, model, table, most
        self.names = state_names(model.layers)
        self.dtype = engine.types["inputs_embeds"]
        (places,) = (spec for spec in engine.inputs if spec.name == "position_ids")
        self.axes = int(places.shape[0])
        self.pads = engine.captures
        self.lock = threading.Lock()
        self.spare: list[Cache] = []

    def start(self, capacity: int) -> "SharedSequence":
        """Begin a sequence of at most `capacity` tokens.

        Raises:
            LimitError: More than the model takes.
            BackendError: No memory for it.
        """
        if capacity > self.most:
            raise LimitError(f"{capacity} tokens were asked for, and the model takes {self.most}")
        with self.lock:
            fitting = [cache for cache in self.spare if cache.capacity >= capacity]
            if fitting:
                cache = min(fitting, key=lambda one: one.capacity)
                self.spare.remove(cache)
                return SharedSequence(self, cache)
        return SharedSequence(self, self.make(rounded(capacity, STEP)))

    def make(self, capacity: int) -> Cache:
        """Take memory for a cache."""
        model = self.model
        sizes = (1, model.kv_heads, capacity, model.head_dim)
        states = {
            name: BoundTensor.zeros(sizes, self.dtype, self.engine.device) for name in self.names
        }
        row = self.table.look_up(np.zeros(1, np.int64))[None]
        feeds: dict[str, Tensor] = {
            "inputs_embeds": row,
            "position_ids": np.zeros((self.axes, 1, capacity), np.int64),
            "seqlens_k": np.zeros(1, np.int32),
            "total_sequence_length": np.array([capacity], np.int32),
            "last": np.zeros(1, np.int64),
            **{f"past.{name}": state for name, state in states.items()},
        }
        outputs = {f"present.{name}": state for name, state in states.items()}
        outputs["logits"] = BoundTensor.empty((1, model.vocabulary), "float32", self.engine.device)
        return Cache(capacity, states, self.engine.bind(feeds, outputs, captured=True))

    def give_back(self, cache: Cache) -> None:
        """Keep a cache for the next sequence; the smallest goes where enough are kept."""
        with self.lock:
            self.spare = sorted([*self.spare, cache], key=lambda one: one.capacity)
            if len(self.spare) > SPARE:
                self.engine.forget(self.spare.pop(0).states.values())


class SharedSequence:
    """A sequence in a cache of fixed length; see `Sequence`."""

    def __init__(self, decoder: SharedDecoder, cache: Cache) -> None:
        """Begin with nothing in the cache."""
        self.decoder = decoder
        self.cache: Cache | None = cache
        self.length = 0
        self.next = -1

    def extend(self, embeds: Tensor, positions: Tensor, count: int) -> NDArray[np.float32]:
        """Take in the prompt; see `Sequence.extend`. `embeds` may have room for a whole bucket, and
        `positions` may go on after the prompt."""
        decoder, cache = self.decoder, self._held()
        places = positions if isinstance(positions, np.ndarray) else positions.numpy()
        places = places[:, :, :count]
        padded, width = bucket(count) if decoder.pads else count, decoder.model.hidden_size
        roomy = isinstance(embeds, BoundTensor) and embeds.room >= padded * width
        if roomy and count < padded <= cache.capacity:
            assert isinstance(embeds, BoundTensor)
            embeds = embeds.viewed((1, padded, width))
            places = np.pad(places, ((0, 0), (0, 0), (0, padded - count)))
        else:
            padded = count
        outputs = decoder.engine.run(
            {
                "inputs_embeds": embeds,
                "position_ids": places,
                "seqlens_k": np.array([padded - 1], np.int32),
                "total_sequence_length": np.array([padded], np.int32),
                "last": np.array([count - 1], np.int64),
                **{f"past.{name}": state for name, state in cache.states.items()},
            },
            {},
            cache.step.outputs,
            repeats=count <= BUCKETED,
        )
        self.length = count
        logits: NDArray[np.float32] = outputs["logits"].numpy()[0]
        return logits

    def step(self, token: int, position: int) -> NDArray[np.float32]:
        """Take in one token; see `Sequence.step`."""
        decoder, cache = self.decoder, self._held()
        call = cache.step
        with decoder.engine.lock:
            if position != self.next:
                slots = np.arange(cache.capacity, dtype=np.int64) + (position - self.length)
                call.inputs["position_ids"].write(
                    np.broadcast_to(slots, (decoder.axes, 1, cache.capacity))
                )
            call.inputs["inputs_embeds"].write(decoder.table.look_up(np.array([token]))[None])
            call.inputs["seqlens_k"].write(np.array([self.length], np.int32))
            decoder.engine.repeat(call)
            logits: NDArray[np.float32] = call.outputs["logits"].numpy()[0]
        self.length += 1
        self.next = position + 1
        return logits

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that the cache holds now; its memory has room for more."""
        return self.length * token_bytes(self.decoder.model, self.decoder.dtype)

    def close(self) -> None:
        """Give the cache back."""
        cache, self.cache = self.cache, None
        if cache is not None:
            self.decoder.give_back(cache)

    def _held(self) -> Cache:
        """The cache; a sequence that was closed has none."""
        if self.cache is None:
            raise LimitError("the sequence was closed; begin another")
        return self.cache


def rounded(count: int, unit: int) -> int:
    """`count` up to the next multiple of `unit`."""
    return -(-count // unit) * unit


def bucket(count: int) -> int:
    """How many tokens a prompt of `count` is run as."""
    return rounded(count, BUCKET) if count <= BUCKETED else count
