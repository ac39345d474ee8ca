"""Our own decoder graph: prefill, then a step a token, over a cache as long as what was kept."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import ModelFacts
from foveate.runtime.language.base import Following, Step, state_names, token_bytes
from foveate.runtime.tensors import Engine, Tensor, Value, length, on_host

Embed = Callable[[NDArray[np.int64]], NDArray[np.generic]]
"""Token ids int64 [N] to embedding rows [N, H]."""


class Decoder:
    """The language model of a bundle; holds no state between requests."""

    def __init__(self, engine: Engine, model: ModelFacts, embed: Embed) -> None:
        """Drive `engine`, a decoder graph of the sizes in `model`; `embed` looks tokens up."""
        self.engine = engine
        self.embed = embed
        self.inputs = {f"past.{name}": f"present.{name}" for name in state_names(model.layers)}
        (past,) = (spec for spec in engine.inputs if spec.name == "past.0.key")
        self.dtype = past.dtype
        self.empty = (1, model.kv_heads, 0, model.head_dim)
        self.token_bytes = token_bytes(model, self.dtype)

    def start(self) -> "GrowingSequence":
        """Begin a sequence with an empty cache."""
        return GrowingSequence(self)

    def start_batch(self, count: int) -> "GrowingBatch":
        """Begin `count` sequences that decode together."""
        return GrowingBatch(self, count)

    def past(self, outputs: Mapping[str, Value]) -> dict[str, Tensor]:
        """The cache that a step gave, as the next one takes it."""
        return {name: outputs[present] for name, present in self.inputs.items()}


class GrowingSequence:
    """A sequence whose cache grows with each token, by concatenation in the graph."""

    def __init__(self, decoder: Decoder) -> None:
        """Begin with nothing in the cache."""
        self.decoder = decoder
        nothing = np.empty(decoder.empty, dtype=decoder.dtype)
        self.cache: dict[str, Tensor] = dict.fromkeys(decoder.inputs, nothing)
        self.length = 0
        self.axes = 1

    def extend(
        self,
        embeds: Tensor,
        positions: Tensor,
        count: int,
        meanwhile: Callable[[], None] | None = None,
    ) -> Following:
        """Take in `count` embedded tokens; see `Sequence.extend`."""
        if meanwhile is not None:
            meanwhile()
        self.length += count
        self.axes = length(positions)
        outputs = self.decoder.engine.run(
            {
                "inputs_embeds": embeds,
                "position_ids": positions,
                "attention_mask": np.ones((1, self.length), dtype=np.int64),
                **self.cache,
            }
        )
        self.cache = self.decoder.past(outputs)
        logits: NDArray[np.float32] = outputs["logits"].numpy()
        return Following(lambda: logits)

    def step(self, token: int, position: int) -> Following:
        """Take in one token; see `Sequence.step`."""
        row = self.decoder.embed(np.array([token], dtype=np.int64))[None]
        return self.extend(row, np.full((self.axes, 1, 1), position, dtype=np.int64), 1)

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache holds now."""
        return self.length * self.decoder.token_bytes

    def close(self) -> None:
        """Give the cache back."""
        self.cache = {}


class GrowingBatch:
    """Sequences whose caches are joined in host memory when they first step; see `Batch`.

    Whenever a row ends, the others are joined anew without it, no longer than they are.
    """

    def __init__(self, decoder: Decoder, count: int) -> None:
        """Begin `count` sequences with nothing in their caches."""
        self.decoder = decoder
        self.rows = tuple(decoder.start() for _ in range(count))
        self.going: list[int] = []
        self.cache: Mapping[str, Tensor] = {}

    def step(self, tokens: Step) -> dict[int, Following]:
        """Take in a token for each row that goes on; see `Batch.step`."""
        going = [self.rows[row] for row in tokens]
        if list(tokens) != self.going:
            self._join(list(tokens))
        ids, places = np.array(list(tokens.values()), np.int64).T
        for row in going:
            row.length += 1
        longest = max(row.length for row in going)
        begins = np.array([[longest - row.length] for row in going])
        outputs = self.decoder.engine.run(
            {
                "inputs_embeds": self.decoder.embed(ids)[:, None],
                "position_ids": np.tile(places[:, None], (going[0].axes, 1, 1)),
                "attention_mask": (np.arange(longest) >= begins).astype(np.int64),
                **self.cache,
            }
        )
        self.cache = self.decoder.past(outputs)
        logits: NDArray[np.float32] = outputs["logits"].numpy()
        return {row: Following(lambda: logits, row=place) for place, row in enumerate(tokens)}

    def close(self) -> None:
        """Give all caches back."""
        self.cache = {}
        for row in self.rows:
            row.close()

    def _join(self, going: list[int]) -> None:
        """Put the caches of rows one below the other, from the rows or from those joined before."""
        longest = max(self.rows[row].length for row in going)
        joined: dict[str, NDArray[np.generic]] = {}
        for name in self.decoder.inputs:
            before = on_host(self.cache[name]) if self.going else None
            for number, row in enumerate(going):
                sequence = self.rows[row]
                if before is None:
                    states = on_host(sequence.cache.pop(name))
                else:
                    states = before[[self.going.index(row)], :, -sequence.length :]
                if number == 0:
                    sizes = (len(going), states.shape[1], longest, states.shape[3])
                    joined[name] = np.zeros(sizes, states.dtype)
                joined[name][number, :, longest - sequence.length :] = states[0]
        self.cache, self.going = joined, going
