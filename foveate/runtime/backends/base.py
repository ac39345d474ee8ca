"""What runs a bundle's vision graph and compressor: the protocol, and what every backend shares."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import GATHER
from foveate.bundle.reader import Bundle
from foveate.errors import BundleError
from foveate.families.base import Prompt, VisualInput
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.keep import Selection
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import DecoderGraph, LanguageModel
from foveate.runtime.language.decoder import Decoder
from foveate.runtime.memory_estimate import MemoryModel
from foveate.runtime.tensors import Feeds, Tensor, on_host

ROLES = ("vision", "compressor", "decoder")
"""The graphs of standard operators, by role, that every bundle has."""


def standard_roles(bundle: Bundle) -> tuple[str, ...]:
    """The roles of a bundle's graphs of standard operators."""
    return (*ROLES, GATHER) if GATHER in bundle.manifest.graphs else ROLES


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Where the rows of a kept prompt come from, in the prompt's order.

    Attributes:
        indices: int64 [K], ordinals of the kept visual tokens, ascending.
        order: int64 [T'], each row's number among the text's rows, then the visual tokens'.
        position_ids: int64 [A, 1, T'], original rotary positions.
    """

    indices: NDArray[np.int64]
    order: NDArray[np.int64]
    position_ids: NDArray[np.int64]

    @classmethod
    def of(cls, prompt: Prompt, indices: NDArray[np.int64]) -> "KeptRows":
        """The rows of a prompt that keeps the visual tokens of these ordinals."""
        text = prompt.text_index
        places = np.concatenate([text, prompt.visual_index[indices]])
        rows = np.concatenate([np.arange(len(text)), len(text) + indices])
        turn = np.argsort(places)
        positions = prompt.position_ids
        if len(places) < positions.shape[1]:
            positions = positions[:, places[turn]]
        return cls(indices, rows[turn], positions[:, None])


@dataclass(frozen=True, slots=True)
class StagedPrompt:
    """A prompt and what is to be kept of it, where `compress` reads it from.

    Attributes:
        prompt: The whole prompt.
        selection: Which visual tokens are kept.
        ranked_by: The prompt whose instruction ranks them.
        text_embeds: [N_t, H], the prompt's embedding rows.
        feeds: The compressor's inputs beside the visual tokens; None where nothing is ranked.
        kept: The kept prompt's rows; None where the ranking decides.
    """

    prompt: Prompt
    selection: Selection
    ranked_by: Prompt
    text_embeds: NDArray[np.generic]
    feeds: Feeds | None
    kept: KeptRows | None


class VisualBackend(ABC):
    """A bundle's vision graph and compressor, opened by one library on one device.

    Calls may come from several threads. They enqueue work and return; a value waits when it is read.
    Each backend says how it runs the graphs.

    Attributes:
        name: The library's.
        device: Where it runs.
        visual_tokens: The most visual tokens of one request.
        remedy: How to raise that limit.
        engines: The opened graphs, by role.
        graph: The decoder graph.
        memory: What requests take in host memory; None where another memory is short.
    """

    name: str
    device: str
    visual_tokens: int
    remedy: str
    engines: Mapping[str, Any]
    graph: DecoderGraph
    memory: MemoryModel | None = None

    def __init__(self, table: EmbeddingTable) -> None:
        """Look embedding rows up in `table`."""
        self.table = table

    def encode(self, visual: VisualInput, *, lasting: bool = False) -> Tensor:
        """Visual tokens E_v [N_v, H] of prepared pictures.

        Args:
            visual: The pictures.
            lasting: Whether the value must outlast the thread's next call of `encode`.

        Raises:
            BackendError: The backend refused the inputs or failed.
            ClosedError: The backend was closed.
        """
        if not visual.tokens:
            rows = self.table.rows
            return np.empty((0, rows.shape[1]), rows.dtype)
        if visual.rows is None or visual.weights is None:
            return self.run_vision(visual, lasting)
        if visual.pooled:
            return summed(self.run_vision(visual, lasting=False), visual.rows, visual.weights)
        if GATHER not in self.engines:
            raise BundleError(
                f"the bundle has no graph {GATHER}, which its family needs; export the checkpoint again"
            )
        features = self.run_vision(visual, lasting=False)
        feeds = {"features": features, "rows": visual.rows, "weights": visual.weights}
        return self.gather_visual(feeds, lasting)

    def stage(
        self, prompt: Prompt, selection: Selection, ranked_by: Prompt | None = None
    ) -> StagedPrompt:
        """Look text rows up, and bring what `compress` takes beside the visual tokens to the device.

        Args:
            prompt: The prompt.
            selection: Which visual tokens are kept.
            ranked_by: Another prompt about the same pictures whose instruction ranks them.

        Raises:
            BackendError: There is no memory for it.
        """
        ranking = ranked_by or prompt
        text = self.table.look_up(prompt.token_ids[prompt.text_index])
        if selection.indices is not None:
            kept = KeptRows.of(prompt, selection.indices)
            return StagedPrompt(prompt, selection, ranking, text, None, kept)
        rows = text
        if ranked_by is not None:
            rows = self.table.look_up(ranking.token_ids[ranking.text_index])
        feeds = self.stage_ranking(ranking, rows, selection.ranked_count)
        return StagedPrompt(prompt, selection, ranking, text, feeds, None)

    def compress(self, visual_embeds: Tensor, staged: StagedPrompt) -> KeptPrompt:
        """Rank the visual tokens and drop the rest: by the graph's own top-k, or by ordinals.

        Args:
            visual_embeds: [N_v, H], what `encode` gave.
            staged: What `stage` gave, of the same thread.

        Raises:
            BackendError: The backend refused the inputs or failed, or the relevance is not finite.
            ClosedError: The backend was closed.
        """
        prompt, selection, kept = staged.prompt, staged.selection, staged.kept
        relevance = scores = None
        if kept is None:
            assert staged.feeds is not None
            count = selection.ranked_count
            ranked = self.rank(visual_embeds, staged.feeds, staged.ranked_by, count)
            if selection.is_top_k and staged.ranked_by is prompt:
                return ranked
            # Also refuses relevance that is not finite.
            relevance, scores = ranked.selection().relevance, ranked.scores
            assert scores is not None and relevance is not None
            kept = KeptRows.of(prompt, selection.choose(scores.numpy(), relevance))
        embeds: Tensor = staged.text_embeds[None]
        if selection.total:
            embeds = self.gather(staged.text_embeds, visual_embeds, kept.order)
        length = len(kept.order)
        return KeptPrompt(
            prompt,
            length,
            embeds,
            kept.position_ids,
            kept.indices,
            relevance,
            scores,
            self.graph.advice,
        )

    def largest_run(self, visual: VisualInput) -> int:
        """The rows of the largest run of the vision graph."""
        return visual.output_rows

    @abstractmethod
    def run_vision(self, visual: VisualInput, lasting: bool) -> Tensor:
        """The real rows of the vision graph's output, over all calls: [R, H]."""

    def gather_visual(self, feeds: Feeds, lasting: bool) -> Tensor:
        """Visual tokens [N_v, H]: weighted sums of the vision graph's rows, by the graph for it."""
        found: Tensor = self.engines[GATHER].run(feeds)["visual_embeds"]
        return found

    @abstractmethod
    def stage_ranking(self, prompt: Prompt, text_embeds: NDArray[np.generic], keep: int) -> Feeds:
        """The compressor's inputs beside the visual tokens, where it reads them from."""

    @abstractmethod
    def rank(self, visual_embeds: Tensor, feeds: Feeds, prompt: Prompt, count: int) -> KeptPrompt:
        """Run the compressor graph, which keeps its `count` best visual tokens."""

    @abstractmethod
    def gather(
        self, text_embeds: NDArray[np.generic], visual_embeds: Tensor, order: NDArray[np.int64]
    ) -> Tensor:
        """The kept prompt [1, T', H]: rows of [text; visual] by their numbers int64 [T']."""

    def decoder(self) -> LanguageModel:
        """The bundle's own decoder graph, run by the same library on the same device."""
        return Decoder(self.graph)

    def close(self) -> None:
        """Free everything; closing twice is fine."""
        for engine in self.engines.values():
            engine.close()


class StandardBackend(VisualBackend):
    """What backends over a compressor graph of standard operators share."""

    def stage_ranking(self, prompt: Prompt, text_embeds: NDArray[np.generic], keep: int) -> Feeds:
        """The compressor's inputs, on the host as they are."""
        return {
            "text_embeds": text_embeds,
            "text_index": prompt.text_index,
            "visual_index": prompt.visual_index,
            "instruction_rows": prompt.instruction_rows,
            "position_ids": prompt.position_ids,
            "keep": np.array([keep], dtype=np.int64),
        }

    def rank(self, visual_embeds: Tensor, feeds: Feeds, prompt: Prompt, count: int) -> KeptPrompt:
        """Run the compressor graph."""
        outputs = self.engines["compressor"].run({**feeds, "visual_embeds": visual_embeds})
        return KeptPrompt(
            prompt,
            prompt.length_with(count),
            outputs["inputs_embeds"],
            outputs["kept_position_ids"],
            outputs["kept_indices"],
            outputs["relevance"],
            outputs["scores"],
            self.graph.advice,
        )


def summed(
    features: Tensor, rows: NDArray[np.int64], weights: NDArray[np.float32]
) -> NDArray[np.generic]:
    """Visual tokens [N_v, H] as sums of the vision graph's rows [R, H], on the host and in float32.

    Args:
        features: Of float32, float16 or bfloat16, which is held as uint16.
        rows: int64 [N_v, K].
        weights: float32 [N_v, K].

    Returns:
        Of the features' type.
    """
    found = on_host(features)
    wide = found.astype(np.uint32) << 16 if found.dtype == np.uint16 else found.astype(np.float32)
    wide = wide.view(np.float32)
    total = np.zeros((len(rows), wide.shape[1]), np.float32)
    for row, weight in zip(rows.T, weights.T, strict=True):
        total += weight[:, None] * wide[row]
    if found.dtype != np.uint16:
        return total.astype(found.dtype)
    bits = total.view(np.uint32)
    # To the nearest, and to even in the middle.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
