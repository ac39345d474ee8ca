"""Decoders whose KV cache grows by concatenation: a step gives the whole cache that the next one takes."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import ModelFacts
from foveate.errors import ClosedError
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import DecoderGraph, Generation, NextLogits
from foveate.runtime.tensors import DeviceTensor, Feeds, Tensor, on_host


class GrowingDecoder(DecoderGraph):
    """A growing decoder graph; holds no state between requests."""

    def __init__(
        self, engine: Any, dtype: str, model: ModelFacts, table: EmbeddingTable, advice: str
    ) -> None:
        """Drive an `OnnxEngine` or a `TensorRTEngine`; see `DecoderGraph`."""
        super().__init__(engine, dtype, model, table, advice)
        self.states = {f"past.{name}": f"present.{name}" for name in self.names}
        self.nothing = (1, model.kv_heads, 0, model.head_dim)

    def begin(self, most: int) -> Any:
        """Memory for a sequence of at most so many tokens, where the engine does not take it itself."""
        return None

    def prefill_chunk(self, length: int) -> int:
        """How many tokens of a prompt of `length` are taken in by a run; all, where memory allows it."""
        return length

    @abstractmethod
    def empty(self, memory: Any) -> dict[str, Tensor]:
        """A cache of no tokens, by input of the decoder."""

    @abstractmethod
    def mask(self, length: int) -> Tensor:
        """An attention mask of ones, int64 [1, length]."""

    @abstractmethod
    def run(self, feeds: Feeds, memory: Any, *, first: bool) -> dict[str, DeviceTensor]:
        """Enqueue the decoder on a sequence, whose first run is its prefill; or on several."""

    def allocate(self, settings: Sequence[Generation]) -> "GrowingCache":
        """Begin sequences that decode together; see `DecoderGraph.allocate`."""
        self.most_tokens(settings)
        return GrowingCache(self, [self.begin(one.most_tokens) for one in settings])

    def past(self, outputs: Mapping[str, DeviceTensor]) -> dict[str, Tensor]:
        """The cache that a step gave, as the next one takes it."""
        return {past: outputs[present] for past, present in self.states.items()}


class GrowingCache:
    """Sequences whose caches grow with each token; see `KVCache`.

    Several are joined in host memory when they first decode; whenever a row ends, the others are
    joined anew without it, no longer than they are.
    """

    def __init__(self, decoder: GrowingDecoder, memory: list[Any]) -> None:
        """Begin with nothing in the rows of `memory`."""
        self.decoder, self.memory = decoder, memory
        self.lengths = [0] * len(memory)
        self.axes = 1
        self.open = set(range(len(memory)))
        self.rows: dict[int, dict[str, Tensor]] = {}
        self.joined: Mapping[str, Tensor] = {}
        self.going: list[int] = []

    def prefill(self, row: int, prompt: KeptPrompt) -> NextLogits:
        """Take in a row's prompt; see `KVCache.prefill`."""
        self.axes = prompt.position_ids.shape[0]
        self.rows[row] = self.decoder.empty(self.memory[row])
        return self._take_in(row, prompt, 0)

    def decode(self, tokens: Mapping[int, tuple[int, int]]) -> dict[int, NextLogits]:
        """Take in a token for each row that goes on; see `KVCache.decode`."""
        if not self.open.issuperset(tokens):
            raise ClosedError("a sequence is closed; begin another")
        ids, places = np.array(list(tokens.values()), np.int64).T
        embeds = self.decoder.table.look_up(ids)[:, None]
        positions = np.tile(places[:, None], (self.axes, 1, 1))
        if len(self.memory) == 1:
            return {0: self._append(0, embeds, positions, 1, first=False)}
        if list(tokens) != self.going:
            self._join(list(tokens))
        for row in tokens:
            self.lengths[row] += 1
        longest = max(self.lengths[row] for row in tokens)
        begins = np.array([[longest - self.lengths[row]] for row in tokens])
        outputs = self.decoder.run(
            {
                "inputs_embeds": embeds,
                "position_ids": positions,
                "attention_mask": (np.arange(longest) >= begins).astype(np.int64),
                **self.joined,
            },
            None,
            first=False,
        )
        self.joined = self.decoder.past(outputs)
        logits: NDArray[np.float32] = outputs["logits"].numpy()
        advice = self.decoder.advice
        return {
            row: NextLogits(lambda: logits, row=place, advice=advice)
            for place, row in enumerate(tokens)
        }

    def states(self) -> dict[str, Tensor]:
        """The only row's keys and values; see `ResumableCache.states`."""
        return self.rows[0]

    def resume(self, prompt: KeptPrompt, states: Mapping[str, Tensor], count: int) -> NextLogits:
        """Take in the only row's prompt after keys and values that are there; see `ResumableCache`."""
        self.axes, self.lengths[0] = prompt.position_ids.shape[0], count
        self.rows[0] = {name: on_host(state)[:, :, :count] for name, state in states.items()}
        return self._take_in(0, prompt, count)

    def nbytes(self, row: int) -> int:
        """Bytes of keys and values that a row holds now."""
        return self.lengths[row] * self.decoder.token_bytes

    def release(self, row: int) -> None:
        """Give a row back; with the last one goes the joined cache."""
        self.open.discard(row)
        self.rows.pop(row, None)
        if not self.open:
            self.joined = {}

    def discard(self) -> None:
        """End all rows; no other sequence reads their memory."""
        for row in list(self.open):
            self.release(row)

    def _take_in(self, row: int, prompt: KeptPrompt, begin: int) -> NextLogits:
        """Take a prompt's tokens from `begin` on into a row of its own, some at a time."""
        length, chunk = prompt.length, self.decoder.prefill_chunk(prompt.length)
        if begin == 0 and chunk >= length:
            return self._append(row, prompt.embeds, prompt.position_ids, length, first=True)
        embeds, positions = on_host(prompt.embeds), on_host(prompt.position_ids)
        for start in range(begin, length, chunk):
            part = slice(start, min(start + chunk, length))
            count = part.stop - start
            rows, places = embeds[:, part], positions[..., part]
            logits = self._append(row, rows, places, count, first=start == 0)
        return logits

    def _append(
        self, row: int, embeds: Tensor, positions: Any, count: int, *, first: bool
    ) -> NextLogits:
        """Take `count` embedded tokens into a row of its own."""
        self.lengths[row] += count
        outputs = self.decoder.run(
            {
                "inputs_embeds": embeds,
                "position_ids": positions,
                "attention_mask": self.decoder.mask(self.lengths[row]),
                **self.rows[row],
            },
            self.memory[row],
            first=first,
        )
        self.rows[row] = self.decoder.past(outputs)
        return NextLogits(outputs["logits"].numpy, advice=self.decoder.advice)

    def _join(self, going: list[int]) -> None:
        """Put the caches of rows one below the other, from the rows or from those joined before."""
        longest = max(self.lengths[row] for row in going)
        joined: dict[str, NDArray[np.generic]] = {}
        for name in self.decoder.states:
            before = on_host(self.joined[name]) if self.going else None
            for number, row in enumerate(going):
                length = self.lengths[row]
                if before is None:
                    states = on_host(self.rows[row].pop(name))
                else:
                    states = before[[self.going.index(row)], :, -length:]
                if number == 0:
                    shape = (len(going), states.shape[1], longest, states.shape[3])
                    joined[name] = np.zeros(shape, states.dtype)
                joined[name][number, :, longest - length :] = states[0]
        self.joined, self.going = joined, going
