"""TensorRT's two forms of decoder engine: a cache written in place, and one that grows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foveate.bundle.manifest import ModelFacts
from foveate.runtime.backends.trt.engine import TensorRTEngine
from foveate.runtime.backends.trt.ranges import largest
from foveate.runtime.backends.trt.tensor_specs import WRITE_INDICES
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.finite import remedy
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import Capabilities, Generation
from foveate.runtime.language.cache_pool import CacheMemory
from foveate.runtime.language.growing_decoder import GrowingDecoder
from foveate.runtime.language.static_decoder import StaticDecoder
from foveate.runtime.tensors import Call, DeviceTensor, Feeds, Tensor


class WriteIndexDecoder(StaticDecoder):
    """A static decoder engine: it takes the slot to write, and the new tokens' positions."""

    engine: TensorRTEngine

    def __init__(
        self, engine: TensorRTEngine, model: ModelFacts, table: EmbeddingTable, limit: int
    ) -> None:
        """Drive `engine`, a decoder of the sizes in `model`, within the bundle's limit of tokens."""
        super().__init__(engine, engine.kinds["past.0.key"], model, table, advice(engine))
        self.length = largest(engine.variant, "past.0.key", 2)
        self.capabilities = Capabilities(batch=1, most_tokens=min(limit, self.length))
        (places,) = (spec for spec in engine.inputs if spec.name == "position_ids")
        self.axes = int(places.shape[0])

    def capacity(self, most: int) -> int:
        """The one length of the engine's caches."""
        return self.length

    def step_feeds(self, rows: int, capacity: int) -> Feeds:
        """A decode step's inputs, for a cache with nothing in it."""
        return {
            "position_ids": np.zeros((self.axes, 1, 1), np.int64),
            WRITE_INDICES: np.zeros(1, np.int64),
        }

    def begin(self, settings: Sequence[Generation], memory: CacheMemory) -> None:
        """Clear the cache."""
        for state in memory.states.values():
            self.engine.gpu.clear(state)

    def write_step(
        self, known: None, call: Call, lengths: Any, tokens: Mapping[int, tuple[int, int]]
    ) -> None:
        """Write where the token goes, and its position."""
        ((_, position),) = tokens.values()
        call.inputs["position_ids"].write(np.full((self.axes, 1, 1), position, np.int64))
        call.inputs[WRITE_INDICES].write(np.array([lengths[0]], np.int64))

    def run_prefill(
        self, known: None, memory: CacheMemory, row: int, prompt: KeptPrompt
    ) -> dict[str, DeviceTensor]:
        """Enqueue the prefill into the cache."""
        place = memory.step.inputs[WRITE_INDICES]
        place.write(np.zeros(1, np.int64))
        states = memory.states.items()
        return self.engine.run(
            {
                "inputs_embeds": prompt.embeds,
                "position_ids": prompt.position_ids,
                WRITE_INDICES: place,
                **{f"past.{name}": state for name, state in states},
            },
            {f"present.{name}": state for name, state in states},
        )


class DoubleBufferDecoder(GrowingDecoder):
    """A growing decoder engine: each sequence has memory twice, what a step reads and what it writes."""

    engine: TensorRTEngine

    def __init__(
        self, engine: TensorRTEngine, model: ModelFacts, table: EmbeddingTable, limit: int
    ) -> None:
        """Drive `engine`, a decoder of the sizes in `model`, within the bundle's limit of tokens."""
        super().__init__(engine, engine.kinds["past.0.key"], model, table, advice(engine))
        capacity = largest(engine.variant, "past.0.key", 2) + 1
        self.capabilities = Capabilities(batch=1, most_tokens=min(limit, capacity))
        most = largest(engine.variant, "attention_mask", 1)
        kind = engine.kinds["attention_mask"]
        self.ones = engine.gpu.upload(np.ones((1, most), kind), kind)

    def begin(self, most: int) -> list[dict[str, DeviceTensor]]:
        """Memory for `most` tokens twice, by output of the decoder."""
        shape = (*self.nothing[:2], most, self.nothing[3])
        return [
            {name: self.engine.gpu.empty(shape, self.dtype) for name in self.states.values()}
            for _ in range(2)
        ]

    def empty(self, memory: list[dict[str, DeviceTensor]]) -> dict[str, Tensor]:
        """A cache of no tokens."""
        return {
            past: memory[1][present].viewed(self.nothing) for past, present in self.states.items()
        }

    def mask(self, length: int) -> DeviceTensor:
        """An attention mask of ones, [1, length]."""
        return self.ones.viewed((1, length))

    def run(
        self, feeds: Feeds, memory: list[dict[str, DeviceTensor]], *, first: bool
    ) -> dict[str, DeviceTensor]:
        """Enqueue the decoder; only prefills come again with the same shapes."""
        outputs = self.engine.run(feeds, memory[0], capture=None if first else False)
        memory.reverse()
        return outputs


def advice(engine: TensorRTEngine) -> str:
    """What to do where an engine gives numbers that are not finite."""
    wider = (
        "export the checkpoint with --precision fp32 or bf16 and build its engines, or build those of an "
        "fp32 bundle with --precision fp32"
    )
    return remedy(engine.variant.precision, wider)
