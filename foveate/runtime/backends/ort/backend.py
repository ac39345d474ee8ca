"""onnxruntime on standard operators: the backend that runs everywhere."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.reader import Bundle
from foveate.families.base import Call, VisualInput
from foveate.runtime.backends.base import StandardBackend, standard_roles
from foveate.runtime.backends.ort.precision import check_precision
from foveate.runtime.backends.ort.session import OnnxEngine, OnnxOptions, resolve_device
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.finite import remedy
from foveate.runtime.language.base import Capabilities
from foveate.runtime.language.growing_decoder import GrowingDecoder
from foveate.runtime.memory_estimate import VISION_SCORES, MemoryModel
from foveate.runtime.tensors import DeviceTensor, Feeds, Tensor, held, on_host

TOKENS = 256
"""A run of the vision graph takes pictures of about so many visual tokens together."""
SCORES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""How many attention scores of a layer a run of the decoder may have."""
LEAST_CHUNK = 256
"""A prompt is taken in by runs of at least so many tokens: each reads all weights."""


class OrtBackend(StandardBackend):
    """A bundle's graphs of standard operators in onnxruntime; see `VisualBackend`."""

    name = "onnxruntime"
    remedy = "export with a higher --visual-tokens"
    engines: Mapping[str, OnnxEngine]
    graph: "OrtDecoder"

    def __init__(
        self, bundle: Bundle, engines: Mapping[str, OnnxEngine], table: EmbeddingTable, device: str
    ) -> None:
        """Put opened graphs together; use `OrtBackend.open`."""
        super().__init__(table)
        manifest = bundle.manifest
        self.device, self.visual_tokens = device, manifest.limits.visual_tokens
        self.engines, self.width = engines, manifest.model.hidden_size
        self.graph = OrtDecoder(engines["decoder"], bundle, table)

    @classmethod
    def open(cls, bundle: Bundle, *, device: str, threads: int) -> "OrtBackend":
        """Open a bundle's graphs.

        Args:
            bundle: An open bundle.
            device: "auto", "cpu" or "cuda".
            threads: Threads within an operator; 0 leaves it to onnxruntime.

        Raises:
            BackendError: The device cannot be had, or cannot run the bundle's precision.
            BundleError: A graph that is not what the manifest says.
        """
        device, precision = resolve_device(device), bundle.manifest.precision
        check_precision(bundle.root, precision, device)
        table = EmbeddingTable(bundle)
        options = OnnxOptions(device=device, threads=threads, precision=precision)
        engines: dict[str, OnnxEngine] = {}
        for role in standard_roles(bundle):
            own = replace(options, arena=role == "vision")
            engine = engines[role] = OnnxEngine(bundle.file(role), own)
            bundle.check_graph(role, engine.inputs, engine.outputs)
        backend = cls(bundle, engines, table, device)
        if device == "cpu":
            graph = backend.graph
            backend.memory = MemoryModel.of(bundle, graph.dtype, VISION_SCORES, graph.prefill_chunk)
        return backend

    def largest_run(self, visual: VisualInput) -> int:
        """The rows of the largest part: a picture, or several small ones."""
        return visual.largest_run(TOKENS)

    def run_vision(self, visual: VisualInput, lasting: bool) -> Tensor:
        """The vision graph's rows, part by part of each call."""
        parts = [
            (self.engines["vision"].run(part.inputs)["visual_embeds"], part.tokens)
            for part in runs(visual)
        ]
        if not parts:
            return np.empty((0, self.width), held(self.table.dtype))
        if len(parts) == 1 and parts[0][0].shape[0] == parts[0][1]:
            return parts[0][0]
        return np.concatenate([part.numpy()[:tokens] for part, tokens in parts])

    def gather(
        self, text_embeds: NDArray[np.generic], visual_embeds: Tensor, order: NDArray[np.int64]
    ) -> NDArray[np.generic]:
        """The prompt's rows, on the host."""
        texts = len(text_embeds)
        # Text's places take any row first ("clip"), so that visual rows are copied once.
        rows = np.take(on_host(visual_embeds), order - texts, axis=0, mode="clip")
        of_text = order < texts
        rows[of_text] = text_embeds[order[of_text]]
        return rows[None]


def runs(visual: VisualInput) -> Iterator[Call]:
    """The runs of the vision graph: small pictures of one size together, a large one by itself."""
    for call in visual.calls:
        yield from call.parts(TOKENS)


class OrtDecoder(GrowingDecoder):
    """A growing decoder in onnxruntime, which takes memory for the caches itself."""

    def __init__(self, engine: OnnxEngine, bundle: Bundle, table: EmbeddingTable) -> None:
        """Run `engine`, a decoder of the bundle."""
        (past,) = (spec for spec in engine.inputs if spec.name == "past.0.key")
        manifest = bundle.manifest
        wider = "fp32" if engine.device == "cpu" else "fp32 or bf16"
        advice = remedy(manifest.precision, f"export the checkpoint with --precision {wider}")
        super().__init__(engine, past.dtype, manifest.model, table, advice)
        most = manifest.limits.prompt_tokens
        self.capabilities = Capabilities(
            batch=None, most_tokens=most, prefix_reuse=engine.device == "cpu"
        )

    def prefill_chunk(self, length: int) -> int:
        """Equal parts of the prompt, whose attention scores are bounded."""
        most = max(LEAST_CHUNK, SCORES[self.engine.device] // (self.model.heads * length))
        return -(-length // -(-length // most))

    def empty(self, memory: None) -> dict[str, Tensor]:
        """A cache of no tokens."""
        return dict.fromkeys(self.states, np.empty(self.nothing, held(self.dtype)))

    def mask(self, length: int) -> NDArray[np.int64]:
        """An attention mask of ones, int64 [1, length]."""
        return np.ones((1, length), dtype=np.int64)

    def run(self, feeds: Feeds, memory: None, *, first: bool) -> dict[str, DeviceTensor]:
        """Run the decoder."""
        outputs: dict[str, DeviceTensor] = self.engine.run(feeds)
        return outputs
