"""What TensorRT's two forms of decoder engine take beside embeddings, and the memory of their caches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foveate.bundle.manifest import ModelFacts
from foveate.runtime.backends.trt.engine import TensorRTEngine
from foveate.runtime.backends.trt.ranges import largest
from foveate.runtime.backends.trt.tensor_specs import WRITE_INDICES
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import Capabilities, Generation, state_names
from foveate.runtime.language.cache_pool import CacheMemory
from foveate.runtime.tensors import Call, DeviceTensor, Feeds, Tensor


class WriteIndexInputs:
    """Inputs of a static decoder: the slot to write, and the new tokens' positions; see `CacheInputs`."""

    def __init__(self, engine: TensorRTEngine, model: ModelFacts, limit: int) -> None:
        """Feed `engine`, a decoder of the sizes in `model`, within the bundle's limit of tokens."""
        self.engine, self.dtype = engine, engine.kinds["past.0.key"]
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

    def outputs(self, rows: int) -> dict[str, DeviceTensor]:
        """Nothing: the engine takes memory for its logits when it is bound."""
        return {}

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

    def prefill(
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


class TrtGrowing:
    """A growing decoder engine, for one sequence at a time; see `GrowingEngine`."""

    def __init__(self, engine: TensorRTEngine, model: ModelFacts, limit: int) -> None:
        """Run `engine`, a decoder of the sizes in `model`, within the bundle's limit of tokens."""
        self.engine, self.dtype = engine, engine.kinds["past.0.key"]
        self.names = state_names(model.layers)
        self.nothing = (1, model.kv_heads, 0, model.head_dim)
        capacity = largest(engine.variant, "past.0.key", 2) + 1
        self.capabilities = Capabilities(batch=1, most_tokens=min(limit, capacity))
        most = largest(engine.variant, "attention_mask", 1)
        kind = engine.kinds["attention_mask"]
        self.ones = engine.gpu.upload(np.ones((1, most), kind), kind)

    def begin(self, most_tokens: int) -> "DoubleBuffer":
        """Memory for a sequence of at most so many tokens."""
        return DoubleBuffer(self, most_tokens)

    def run(self, feeds: Feeds) -> dict[str, DeviceTensor]:
        """Enqueue the decoder on memory of its own."""
        return self.engine.run(feeds, capture=False)

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


class DoubleBuffer:
    """Memory for one sequence twice: what a step reads, and what it writes. See `RowMemory`."""

    def __init__(self, growing: TrtGrowing, most_tokens: int) -> None:
        """Take memory for `most_tokens` tokens."""
        self.growing = growing
        shape = (*growing.nothing[:2], most_tokens, growing.nothing[3])
        self.sets = [
            {
                f"present.{name}": growing.engine.gpu.empty(shape, growing.dtype)
                for name in growing.names
            }
            for _ in range(2)
        ]

    def empty(self) -> dict[str, Tensor]:
        """A cache of no tokens."""
        return {
            f"past.{name}": self.sets[1][f"present.{name}"].viewed(self.growing.nothing)
            for name in self.growing.names
        }

    def mask(self, length: int) -> DeviceTensor:
        """An attention mask of ones, [1, length]."""
        return self.growing.ones.viewed((1, length))

    def run(self, feeds: Feeds, *, first: bool) -> dict[str, DeviceTensor]:
        """Enqueue the decoder; only prefills come again with the same shapes."""
        outputs = self.growing.engine.run(feeds, self.sets[0], capture=None if first else False)
        self.sets.reverse()
        return outputs
