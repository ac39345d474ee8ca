"""Our own decoder graph: prefill, then a step a token, over a cache as long as what was kept."""

import numpy as np
from numpy.typing import NDArray

from foveate.manifest import ModelFacts
from foveate.runtime.engines import Engine, Feeds, Value


class Decoder:
    """The language model of a bundle; holds no state between requests."""

    def __init__(self, engine: Engine, model: ModelFacts) -> None:
        """Drive `engine`, a decoder graph of the sizes in `model`."""
        self.engine = engine
        self.names = [
            f"{layer}.{kind}" for layer in range(model.layers) for kind in ("key", "value")
        ]
        (past,) = (spec for spec in engine.inputs if spec.name == "past.0.key")
        self.dtype = past.dtype
        self.empty = (1, model.kv_heads, 0, model.head_dim)

    def start(self) -> "Sequence":
        """Begin a sequence with an empty cache."""
        return Sequence(self)


class Sequence:
    """One sequence and its cache of keys and values."""

    def __init__(self, decoder: Decoder) -> None:
        """Begin with nothing in the cache."""
        self.decoder = decoder
        nothing = np.empty(decoder.empty, dtype=decoder.dtype)
        self.cache: Feeds = {f"past.{name}": nothing for name in decoder.names}
        self.length = 0

    def extend(
        self, embeds: NDArray[np.generic] | Value, positions: NDArray[np.int64] | Value, count: int
    ) -> NDArray[np.float32]:
        """Take in `count` tokens and give the logits of what follows them.

        Args:
            embeds: [1, S, H], of the graph's dtype.
            positions: int64 [A, 1, S], rotary positions; they need not be consecutive.
            count: S.

        Returns:
            float32 [V].
        """
        self.length += count
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

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache holds now."""
        shape = self.decoder.empty
        size = np.dtype(self.decoder.dtype).itemsize
        return len(self.decoder.names) * shape[1] * self.length * shape[3] * size
