"""A decoder that writes its cache in place: fixed memory, a token a CUDA graph launch."""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import ModelFacts
from foveate.errors import BackendError, ClosedError, LimitError
from foveate.runtime.backends.ort_contrib.buckets import Repeats, bucket, lengthened
from foveate.runtime.backends.ort_contrib.io_binding import BoundEngine, BoundTensor, Call
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.language.base import Extent, Following, Step, state_names, token_bytes
from foveate.runtime.tensors import Tensor, on_host

STEP = 256
"""Caches are as long as a multiple of this; a long prompt's bucket has room in them, too."""
PROMPT, LONG = 128, 32
"""Prompts are filled up to buckets of multiples of this, and of this where they are longer than RECORDED:
what fills them up comes after them, where they do not look."""
RECORDED = 1024
"""Tokens of the longest prompts that become CUDA graphs; longer ones keep the GPU busy."""
SPARE = 2
"""Caches for one sequence that are kept for the next; of those for each other number of rows, one is."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Memory for some sequences at a time, a row each, and the calls that fill it.

    Attributes:
        rows: How many sequences.
        capacity: Tokens that each row has room for.
        states: Keys and values by name, [rows, kv_heads, capacity, head_dim].
        step: The decoder bound for one token a row.
        prompts: What a row's prompt is written to: the row's part of the states, logits [1, V], best [1].
    """

    rows: int
    capacity: int
    states: dict[str, BoundTensor]
    step: Call
    prompts: tuple[dict[str, BoundTensor], ...]


class SharedDecoder:
    """The language model of a fused bundle, and the caches that its sequences take turns with."""

    def __init__(self, engine: BoundEngine, model: ModelFacts, table: EmbeddingTable, most: int):
        """Drive `engine`, a decoder of the sizes in `model`, for sequences of up to `most` tokens."""
        self.engine, self.model, self.table, self.most = engine, model, table, most
        self.names = state_names(model.layers)
        self.dtype = engine.types["inputs_embeds"]
        (places,) = (spec for spec in engine.inputs if spec.name == "position_ids")
        self.axes = int(places.shape[1])
        self.pads = engine.captures
        self.lock, self.repeats = threading.Lock(), Repeats()
        self.spare: list[Cache] = []

    def start(self, capacity: int) -> "SharedSequence":
        """Begin a sequence of at most `capacity` tokens.

        Raises:
            LimitError: More than the model takes.
            BackendError: No memory for it.
        """
        return SharedBatch(self, self.take(1, capacity), [0]).rows[0]

    def start_batch(self, extents: Collection[Extent]) -> "SharedBatch":
        """Begin sequences that decode together.

        A step finds every row's rotary position by its slot in one table, so the rows' positions are
        moved until those after the prompts agree; attention sees the distances alone, which stay.

        Raises:
            LimitError: More than the model takes.
            BackendError: No memory for them.
        """
        ahead = [one.position - one.prompt for one in extents]
        cache = self.take(len(extents), max(one.capacity for one in extents))
        return SharedBatch(self, cache, [max(ahead) - one for one in ahead])

    def run_as(self, count: int) -> int:
        """How many tokens a prompt of `count` is run as; a long one as it is, once it has come often."""
        if not self.pads or (count > RECORDED and self.repeats.comes_again(count)):
            return count
        return filled(count)

    def take(self, rows: int, capacity: int) -> Cache:
        """A spare cache that is large enough, or a new one, for which all spare ones may have to go.

        Raises:
            LimitError: More than the model takes.
            BackendError: No memory for it.
        """
        if capacity > self.most:
            raise LimitError(f"{capacity} tokens were asked for, and the model takes {self.most}")
        with self.lock:
            fitting = [one for one in self.spare if one.rows == rows and one.capacity >= capacity]
            if fitting:
                cache = min(fitting, key=lambda one: one.capacity)
                self.spare.remove(cache)
                return cache
            capacity = bucket(capacity, STEP)
            try:
                return self.make(rows, capacity)
            except BackendError:
                if not self.spare:
                    raise
                for cache in self.spare:
                    self.engine.forget(cache.states.values())
                self.spare.clear()
            return self.make(rows, capacity)

    def make(self, rows: int, capacity: int) -> Cache:
        """Take memory for a cache."""
        model, device = self.model, self.engine.device
        sizes = (rows, model.kv_heads, capacity, model.head_dim)
        states = {name: BoundTensor.zeros(sizes, self.dtype, device) for name in self.names}
        feeds: dict[str, Tensor] = {
            "inputs_embeds": self.table.look_up(np.zeros(rows, np.int64))[:, None],
            "position_ids": np.zeros((capacity, self.axes), np.int64),
            "seqlens_k": np.zeros(rows, np.int32),
            "total_sequence_length": np.array([capacity], np.int32),
            "last": np.zeros(1, np.int64),
            **{f"past.{name}": state for name, state in states.items()},
        }
        outputs = {f"present.{name}": state for name, state in states.items()}
        outputs |= self.said(rows)
        step = self.engine.bind(feeds, outputs, captured=True)
        return Cache(rows, capacity, states, step, self.prompts(rows, outputs))

    def prompts(
        self, rows: int, outputs: Mapping[str, BoundTensor]
    ) -> tuple[dict[str, BoundTensor], ...]:
        """Each row's part of what a step of all rows writes; what follows their prompts shares memory."""
        if rows == 1:
            return (dict(outputs),)
        said = self.said(1)
        return tuple(
            {name: said.get(name) or row_of(tensor, row) for name, tensor in outputs.items()}
            for row in range(rows)
        )

    def said(self, rows: int) -> dict[str, BoundTensor]:
        """Memory for what the decoder says of the token that follows in each row."""
        device = self.engine.device
        return {
            "logits": BoundTensor.empty((rows, self.model.vocabulary), "float32", device),
            "best": BoundTensor.empty((rows,), "int64", device),
        }

    def give_back(self, cache: Cache) -> None:
        """Keep a cache for the next sequences; the smallest goes where enough are kept."""
        with self.lock:
            self.spare = sorted([*self.spare, cache], key=lambda one: one.capacity)
            alike = [one for one in self.spare if one.rows == cache.rows]
            if len(alike) > (SPARE if cache.rows == 1 else 1):
                self.spare.remove(alike[0])
                self.engine.forget(alike[0].states.values())


class SharedBatch:
    """Sequences in the rows of one cache; see `Batch`."""

    def __init__(self, decoder: SharedDecoder, cache: Cache, shifts: Sequence[int]) -> None:
        """Begin with nothing in the rows of `cache`; their positions are moved by `shifts`."""
        self.decoder, self.cache, self.shifts = decoder, cache, shifts
        self.lengths = np.zeros(cache.rows, np.int32)
        self.open = set(range(cache.rows))
        self.ahead: int | None = None

    @property
    def rows(self) -> tuple["SharedSequence", ...]:
        """The sequences."""
        return tuple(SharedSequence(self, row) for row in range(self.cache.rows))

    def step(self, tokens: Step) -> dict[int, Following]:
        """Take in a token for each row that goes on; see `Batch.step`.

        The other rows compute as well, on the slot after their last, which nobody reads.
        """
        decoder, cache, call = self.decoder, self.cache, self.cache.step
        if not self.open.issuperset(tokens):
            raise ClosedError("a sequence is closed; begin another")
        ids = np.zeros(cache.rows, np.int64)
        ahead = set()
        for row, (token, position) in tokens.items():
            ids[row] = token
            ahead.add(position + self.shifts[row] - int(self.lengths[row]))
        if len(ahead) > 1:
            raise LimitError(
                "a batch's rows go on at the positions they were begun for; begin another"
            )
        with decoder.engine.lock:
            if self.ahead not in ahead:
                (self.ahead,) = ahead
                slots = np.arange(cache.capacity, dtype=np.int64) + self.ahead
                call.inputs["position_ids"].write(np.tile(slots[:, None], decoder.axes))
            call.inputs["inputs_embeds"].write(decoder.table.look_up(ids)[:, None])
            call.inputs["seqlens_k"].write(self.lengths)
            decoder.engine.repeat(call)
        self.lengths[list(tokens)] += 1
        return followings(call.outputs, tokens)

    def leave(self, row: int) -> None:
        """Give a row back; the last one gives back the cache."""
        if row in self.open:
            self.open.remove(row)
            if not self.open:
                self.decoder.give_back(self.cache)

    def close(self) -> None:
        """Give the cache back."""
        for row in range(self.cache.rows):
            self.leave(row)


class SharedSequence:
    """A sequence in a row of a cache of fixed length; see `Sequence`."""

    def __init__(self, batch: SharedBatch, row: int) -> None:
        """Look at a row of `batch`, which holds all there is."""
        self.batch, self.row, self.decoder = batch, row, batch.decoder

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self.batch.lengths[self.row])

    @property
    def cache(self) -> Cache:
        """Where it lies; a sequence that was closed has none."""
        if self.row not in self.batch.open:
            raise ClosedError("the sequence is closed; begin another")
        return self.batch.cache

    def extend(
        self,
        embeds: Tensor,
        positions: Tensor,
        count: int,
        meanwhile: Callable[[], None] | None = None,
    ) -> Following:
        """Take in the prompt; see `Sequence.extend`. `embeds` and `Positions` may have room for a whole
        bucket, and all may go on after the prompt."""
        decoder, cache = self.decoder, self.cache
        written, shift = cache.prompts[self.row], self.batch.shifts[self.row]
        width = decoder.model.hidden_size
        # A batch's prompts would each become a CUDA graph of their own row, of which there are few.
        alone = cache.rows == 1
        padded = decoder.run_as(count)
        room = embeds.room if isinstance(embeds, BoundTensor) else 0
        if room < padded * width or padded > cache.capacity:
            padded = count
        if isinstance(embeds, BoundTensor):
            embeds = embeds.viewed((1, padded, width))
        outputs = decoder.engine.run(
            {
                "inputs_embeds": embeds,
                "position_ids": by_slot(positions, count, padded, shift),
                "seqlens_k": np.array([padded - 1], np.int32),
                "total_sequence_length": np.array([padded], np.int32),
                "last": np.array([count - 1], np.int64),
                **{f"past.{name}": written[f"present.{name}"] for name in decoder.names},
            },
            {},
            written,
            record=None if alone and count <= RECORDED else False,
            meanwhile=meanwhile,
        )
        self.batch.lengths[self.row] = count
        return followings(outputs, [0])[0]

    def step(self, token: int, position: int) -> Following:
        """Take in one token; see `Sequence.step`."""
        return self.batch.step({self.row: (token, position)})[self.row]

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that the cache holds now; its memory has room for more."""
        return self.length * token_bytes(self.decoder.model, self.decoder.dtype)

    def close(self) -> None:
        """Give the row back."""
        self.batch.leave(self.row)


class Positions:
    """A prompt's rotary positions int64 [A, 1, S], on the device as the decoder takes them; see `Value`."""

    def __init__(self, rows: BoundTensor) -> None:
        """Look at `rows` [S, A], whose memory may have room for more."""
        self.rows = rows

    def shape(self) -> list[int]:
        """Its sizes."""
        return [self.rows.sizes[1], 1, self.rows.sizes[0]]

    def numpy(self) -> NDArray[np.int64]:
        """Copy to host memory."""
        return self.rows.numpy().T[:, None]


def by_slot(positions: Tensor, count: int, padded: int, shift: int) -> Tensor:
    """The decoder's positions [padded, A]: the first `count` moved by `shift`, any after them."""
    if isinstance(positions, Positions) and not shift:
        axes = positions.rows.sizes[1]
        if positions.rows.room >= padded * axes:
            return positions.rows.viewed((padded, axes))
    places = on_host(positions)[:, 0, :count].T + shift
    return lengthened(places, padded - count)


def followings(outputs: Mapping[str, BoundTensor], rows: Iterable[int]) -> dict[int, Following]:
    """What follows in some rows of what a decoder gave, which comes to the host once, if at all."""
    logits, best = (cache(outputs[name].numpy) for name in ("logits", "best"))
    return {row: Following(logits, best, row) for row in rows}


def row_of(tensor: BoundTensor, row: int) -> BoundTensor:
    """One row [1, …] of a tensor [rows, …], where it lies."""
    sizes = (1, *tensor.sizes[1:])
    return tensor.viewed(sizes, row * prod(sizes))


def filled(count: int) -> int:
    """The bucket of a prompt of `count` tokens."""
    return bucket(count, PROMPT if count <= RECORDED else LONG)
