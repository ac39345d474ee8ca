"""What an answer's visual tokens cover, and a pipeline whose decoder steps are watched."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate import Pipeline
from foveate.runtime.answer import Visual
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import DecoderGraph, Generation, KVCache, NextLogits
from foveate.runtime.language.decoder import Decoder


def grids(visual: Visual) -> list[tuple[int, int, int]]:
    """Of each picture or frame its number, and the rows and columns that its tokens' boxes stand in."""
    found = []
    for number in np.unique(visual.picture):
        boxes = visual.boxes[visual.picture == number]
        rows, columns = (len(np.unique(boxes[:, side])) for side in (1, 0))
        assert rows * columns == len(np.unique(boxes, axis=0))
        found.append((int(number), rows, columns))
    return found


class WatchedGraph:
    """A decoder graph that notes the logits of each prefill and decode step, of one sequence at a time.

    Attributes:
        seen: Logits float32 [V], in the order of the steps.
        prompts: The prompts that it took in.
        released: How many rows were given back.
    """

    def __init__(self, graph: DecoderGraph) -> None:
        self.graph, self.capabilities = graph, graph.capabilities
        self.seen: list[NDArray[np.float32]] = []
        self.prompts: list[KeptPrompt] = []
        self.released = 0

    def allocate(self, settings: Sequence[Generation]) -> "WatchedCache":
        return WatchedCache(self, self.graph.allocate(settings))

    def close(self) -> None:
        self.graph.close()


class WatchedCache:
    """The cache of a watched graph."""

    def __init__(self, watched: WatchedGraph, cache: KVCache) -> None:
        self.watched, self.cache = watched, cache
        self.released: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def prefill(self, row: int, prompt: KeptPrompt) -> NextLogits:
        logits = self.cache.prefill(row, prompt)
        self.watched.prompts.append(prompt)
        self.watched.seen.append(logits.logits().copy())
        return logits

    def decode(self, tokens: Mapping[int, tuple[int, int]]) -> dict[int, NextLogits]:
        found = self.cache.decode(tokens)
        self.watched.seen.append(found[0].logits().copy())
        return found

    def release(self, row: int) -> None:
        self.watched.released += row not in self.released
        self.released.add(row)
        self.cache.release(row)


def graph_of(pipe: Pipeline) -> Any:
    """The decoder graph that a pipeline's language model drives."""
    language = pipe._language
    assert isinstance(language, Decoder)
    return language.graph


def watch(pipe: Pipeline) -> tuple[Pipeline, WatchedGraph]:
    """A pipeline over the same graphs, and its watched decoder."""
    watched = WatchedGraph(graph_of(pipe))
    language = Decoder(watched)
    return Pipeline(pipe.bundle, pipe._backend, language, pipe._family, pipe._tokenizer), watched
