"""The decoder graph on a GPU: its cache grows from one of two sets of memory into the other."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import ModelFacts
from foveate.errors import LimitError
from foveate.runtime.backends.trt.cuda import Block, DeviceTensor
from foveate.runtime.backends.trt.engine import TensorRTEngine
from foveate.runtime.backends.trt.ranges import largest
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.language.base import Following, state_names
from foveate.runtime.tensors import Feeds, Tensor, length


class DeviceDecoder:
    """The language model of a bundle on a GPU; holds no state between requests.

    Attributes:
        capacity: The most tokens that a sequence may hold.
    """

    def __init__(self, engine: TensorRTEngine, model: ModelFacts, table: EmbeddingTable) -> None:
        """Drive `engine`, a decoder of the sizes in `model`; tokens are looked up in `table`."""
        self.engine, self.table, self.gpu = engine, table, engine.gpu
        self.names = state_names(model.layers)
        self.dtype: np.dtype[Any] = engine.dtype("past.0.key")
        self.empty = (1, model.kv_heads, 0, model.head_dim)
        self.token_bytes = model.kv_heads * model.head_dim * self.dtype.itemsize
        self.capacity = largest(engine.variant, "past.0.key", 2) + 1
        most = largest(engine.variant, "attention_mask", 1)
        self.ones = self.gpu.upload(np.ones((1, most), dtype=engine.dtype("attention_mask")))

    def start(self, capacity: int) -> "DeviceSequence":
        """Begin a sequence of at most `capacity` tokens; its memory is taken now.

        Raises:
            LimitError: More than the engine takes.
            BackendError: No memory for it.
        """
        check_capacity(capacity, self.capacity, self.engine)
        return DeviceSequence(self, capacity)


class DeviceSequence:
    """A sequence whose cache lies on the GPU; see `Sequence`."""

    def __init__(self, decoder: DeviceDecoder, capacity: int) -> None:
        """Take memory for `capacity` tokens twice: what a step reads, and what it writes."""
        self.decoder = decoder
        self.length = 0
        self.axes = 1
        self.sets: list[dict[str, Block]] = [
            {
                f"present.{name}": decoder.gpu.block(capacity * decoder.token_bytes)
                for name in decoder.names
            }
            for _ in range(2)
        ]
        self.cache: Feeds = {
            f"past.{name}": DeviceTensor(
                self.sets[1][f"present.{name}"], decoder.empty, decoder.dtype
            )
            for name in decoder.names
        }

    def extend(
        self,
        embeds: Tensor,
        positions: Tensor,
        count: int,
        meanwhile: Callable[[], None] | None = None,
    ) -> Following:
        """Take in `count` embedded tokens; see `Sequence.extend`."""
        decoder = self.decoder
        if meanwhile is not None:
            meanwhile()
        first = self.length == 0
        self.length += count
        self.axes = length(positions)
        outputs = decoder.engine.run(
            {
                "inputs_embeds": embeds,
                "position_ids": positions,
                "attention_mask": decoder.ones.resized((1, self.length)),
                **self.cache,
            },
            self.sets[0],
            repeats=first,
        )
        self.sets.reverse()
        self.cache = {f"past.{name}": outputs[f"present.{name}"] for name in decoder.names}
        logits: NDArray[np.float32] = outputs["logits"].numpy()
        return Following(lambda: logits)

    def step(self, token: int, position: int) -> Following:
        """Take in one token; see `Sequence.step`."""
        row = self.decoder.table.look_up(np.array([token], dtype=np.int64))[None]
        return self.extend(row, np.full((self.axes, 1, 1), position, dtype=np.int64), 1)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that the cache holds now."""
        return len(self.decoder.names) * self.length * self.decoder.token_bytes

    def close(self) -> None:
        """Give the cache back."""
        self.cache, self.sets = {}, []


def check_capacity(wanted: int, most: int, engine: TensorRTEngine) -> None:
    """LimitError for a sequence of more tokens than an engine takes."""
    if wanted > most:
        raise LimitError(
            f"the prompt and its answer take up to {wanted} tokens, and the engine for "
            f"{engine.variant.target} takes {most}; ask for a shorter answer, or keep fewer visual "
            "tokens"
        )
