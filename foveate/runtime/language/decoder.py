"""Our own decoder graph: prefill, then a step a token, over a cache as long as what was kept."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from foveate.manifest import ModelFacts
from foveate.runtime.engines import Engine, Feeds, Tensor
from foveate.runtime.language.base import state_names, token_bytes

Embed = Callable[[NDArray[np.int64]], NDArray[np.generic]]
"""Token ids int64 [N] to embedding rows [N, H]."""


class Decoder:
    """The language model of a bundle; holds no state between requests."""

    def __init__(self, engine: Engine, model: ModelFacts, embed: Embed) -> None:
        """Drive `engine`, a decoder graph of the sizes in `model`; `embed` looks tokens up."""
        self.engine = engine
        self.embed = embed
        self.names = state_names(model.layers)
        (past,) = (spec for spec in engine.inputs if spec.name == "past.0.key")
        self.dtype = past.dtype
        self.empty = (1, model.kv_heads, 0, model.head_dim)
        self.token_bytes = token_bytes(model, self.dtype)

    def start(self) -> "GrowingSequence":
        """Begin a sequence with an empty cache."""
        return GrowingSequence(self)


class GrowingSequence:
    """A sequence whose cache grows with each token, by concatenation in the graph."""

    def __init__(self, decoder: Decoder) -> None:
        """Begin with nothing in the cache."""
        self.decoder = decoder
        nothing = np.empty(decoder.empty, dtype=decoder.dtype)
        self.cache: Feeds = {f"past.{name}": nothing for name in decoder.names}
        self.length = 0
        self.axes = 1

    def extend(self, embeds: Tensor, positions: Tensor, count: int) -> NDArray[np.float32]:
        """Take in `count` embedded tokens; see `Sequence.extend`."""
        self.length += count
        self.axes = count_axes(positions)
        outputs = self.decoder.engine.run(
            {
                "inputs_embeds": embeds,
                "position_ids": positions,
                "attention_mask": np.ones((1, self.length), dtype=np.int64),
                **self.cache,
            }
        )
        self.cache = {f"past.{name}": outputs[f"present.{name}"] for name in self.decoder.names}
        logits: NDArray[np.float32] = outputs["logits"].numpy()[0]
        return logits

    def step(self, token: int, position: int) -> NDArray[np.float32]:
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


def count_axes(positions: Tensor) -> int:
    """How many rotary axes positions [A, 1, S] have."""
    return len(positions) if isinstance(positions, np.ndarray) else positions.shape()[0]
