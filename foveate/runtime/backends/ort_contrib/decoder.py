"""The decoder of contrib operators: it writes caches of fixed length in place, several rows at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import ModelFacts
from foveate.errors import LimitError
from foveate.runtime.backends.buckets import Repeats, bucket, padded
from foveate.runtime.backends.ort.memory import empty
from foveate.runtime.backends.ort_contrib.io_binding import IoBoundEngine
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import Capabilities, Generation
from foveate.runtime.language.cache_pool import CacheMemory
from foveate.runtime.language.static_decoder import BEST, StaticDecoder
from foveate.runtime.tensors import Call, DeviceTensor, Feeds, Tensor, on_host

STEP = 256
"""Caches are as long as a multiple of this; a long prompt's bucket has room in them, too."""
PROMPT, LONG = 128, 32
"""Prompts are padded to buckets of multiples of this, and of this where they are longer than CAPTURED:
padding comes after the last token, which does not attend to it."""
CAPTURED = 1024
"""Tokens of the longest prompts that become CUDA graphs; longer ones keep the GPU busy."""


@dataclass(slots=True)
class Positions:
    """The rotary positions of one cache's rows, which share a table by slot.

    Attributes:
        shared: By how much the position after each prompt is to be more than its slot's number; None
            for one row alone.
        shifts: What each row's positions are moved by for that; attention sees distances alone, which
            stay.
        ahead: By how much a slot's position is more than its number; None before the first decode step.
    """

    shared: int | None
    shifts: list[int]
    ahead: int | None = None


class SlotDecoder(StaticDecoder):
    """A GroupQueryAttention decoder: it takes filled lengths, and a table of positions by slot."""

    engine: IoBoundEngine

    def __init__(
        self,
        engine: IoBoundEngine,
        model: ModelFacts,
        table: EmbeddingTable,
        most: int,
        advice: str,
    ) -> None:
        """Drive `engine` for sequences of up to `most` tokens; see `DecoderGraph`."""
        super().__init__(engine, engine.types["inputs_embeds"], model, table, advice)
        self.capabilities = Capabilities(
            batch=None, most_tokens=most, prefix_reuse=engine.device == "cpu"
        )
        (places,) = (spec for spec in engine.inputs if spec.name == "position_ids")
        self.axes = int(places.shape[1])
        self.repeats = Repeats()

    def capacity(self, most: int) -> int:
        """The bucket of a cache for sequences of up to `most` tokens."""
        return bucket(most, STEP)

    def step_feeds(self, rows: int, capacity: int) -> Feeds:
        """A decode step's inputs, for a cache with nothing in it."""
        return {
            "position_ids": np.zeros((capacity, self.axes), np.int64),
            "seqlens_k": np.zeros(rows, np.int32),
            "total_sequence_length": np.array([capacity], np.int32),
            "last": np.zeros(1, np.int64),
        }

    def outputs(self, rows: int) -> dict[str, DeviceTensor]:
        """Memory for the logits of each row's next token, and for their argmax where the graph gives it.

        Graphs that were exported before give no argmax that says whether the logits are finite: logits
        are read whole then.
        """
        device = self.engine.device
        logits = {"logits": empty((rows, self.model.vocabulary), "float32", device)}
        if BEST not in self.engine.types:
            return logits
        return {**logits, BEST: empty((rows,), "float32", device)}

    def begin(self, settings: Sequence[Generation], memory: CacheMemory) -> Positions:
        """Choose a table of positions for all rows."""
        ahead = [one.next_position - one.prompt_tokens for one in settings]
        return Positions(max(ahead) if len(ahead) > 1 else None, [0] * len(ahead))

    def write_step(
        self,
        known: Positions,
        call: Call,
        lengths: NDArray[np.int32],
        tokens: Mapping[int, tuple[int, int]],
    ) -> None:
        """Write the filled lengths, and the table of positions where it is another.

        Raises:
            LimitError: A row goes on at another position than it was begun for.
        """
        ahead = {
            position + known.shifts[row] - int(lengths[row])
            for row, (_, position) in tokens.items()
        }
        if len(ahead) > 1:
            raise LimitError(
                "a batch's rows go on at the positions they were begun for; begin another"
            )
        if known.ahead not in ahead:
            (known.ahead,) = ahead
            table = call.inputs["position_ids"]
            slots = np.arange(table.shape[0], dtype=np.int64) + known.ahead
            table.write(np.tile(slots[:, None], self.axes))
        call.inputs["seqlens_k"].write(lengths)

    def run_prefill(
        self, known: Positions, memory: CacheMemory, row: int, prompt: KeptPrompt
    ) -> dict[str, DeviceTensor]:
        """Enqueue a row's prefill, padded to its bucket on CUDA.

        The prompt's rows and positions may have room for a whole bucket; they are not copied then.
        """
        written, count = memory.prompts[row], prompt.length
        if known.shared is not None:
            # How long a prompt is may be known only once its tokens are ranked.
            known.shifts[row] = known.shared - (prompt.next_position - count)
        embeds, size = prompt.embeds, self.padded_length(count)
        room = embeds.room if isinstance(embeds, DeviceTensor) else 0
        if room < size * self.model.hidden_size or size > memory.capacity:
            size = count
        if isinstance(embeds, DeviceTensor):
            embeds = embeds.viewed((1, size, self.model.hidden_size))
        return self.engine.run(
            {
                "inputs_embeds": embeds,
                "position_ids": by_slot(prompt.position_ids, count, size, known.shifts[row]),
                "seqlens_k": np.array([size - 1], np.int32),
                "total_sequence_length": np.array([size], np.int32),
                "last": np.array([count - 1], np.int64),
                **{f"past.{name}": written[f"present.{name}"] for name in self.names},
            },
            {},
            written,
            # Each row of a batch would be a CUDA graph of its own, of which there are few.
            capture=None if memory.rows == 1 and count <= CAPTURED else False,
        )

    def run_rest(
        self, memory: CacheMemory, prompt: KeptPrompt, states: Feeds, count: int
    ) -> dict[str, DeviceTensor]:
        """Run a prefill from token `count` on; see `StaticDecoder.run_rest`."""
        total = prompt.length
        return self.engine.run(
            {
                "inputs_embeds": on_host(prompt.embeds)[:, count:total],
                "position_ids": on_host(prompt.position_ids)[:, 0, :total].T.copy(),
                "seqlens_k": np.array([total - 1], np.int32),
                "total_sequence_length": np.array([total], np.int32),
                "last": np.array([total - count - 1], np.int64),
                **{f"past.{name}": states[name] for name in self.names},
            },
            {},
            memory.prompts[0],
            capture=False,
        )

    def padded_length(self, count: int) -> int:
        """How many tokens a prompt of `count` is run as; a long one as it is, once it has come often."""
        if not self.engine.captures or (count > CAPTURED and self.repeats.comes_again(count)):
            return count
        return prompt_bucket(count)


class KeptPositions:
    """A kept prompt's rotary positions int64 [A, 1, T'], on the device by row; see `Readable`."""

    def __init__(self, rows: DeviceTensor) -> None:
        """View `rows` [T', A], whose memory may have room for more."""
        self.rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.rows.shape[1], 1, self.rows.shape[0]

    def numpy(self) -> NDArray[np.int64]:
        """Copy to host memory."""
        positions: NDArray[np.int64] = self.rows.numpy().T[:, None]
        return positions


def by_slot(
    positions: KeptPositions | NDArray[np.int64], count: int, size: int, shift: int
) -> Tensor:
    """The decoder's positions [size, A]: the first `count` moved by `shift`, any after them."""
    if isinstance(positions, KeptPositions) and not shift:
        axes = positions.rows.shape[1]
        if positions.rows.room >= size * axes:
            return positions.rows.viewed((size, axes))
    host = on_host(positions)
    return padded(host[:, 0, :count].T + shift, size - count)


def prompt_bucket(count: int) -> int:
    """The bucket of a prompt of `count` tokens."""
    return bucket(count, PROMPT if count <= CAPTURED else LONG)
