"""onnxruntime: the backend that runs everywhere, with the cache growing by concatenation."""

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import Limits, ModelFacts
from foveate.bundle.reader import Bundle
from foveate.families.base import Vision
from foveate.runtime.backends.ort.precision import check_precision
from foveate.runtime.backends.ort.session import OnnxEngine, OnnxOptions, resolve_device
from foveate.runtime.language.base import Batch, Extent, Sequence
from foveate.runtime.language.decoder import Decoder
from foveate.runtime.tensors import Engine, Feeds, Tensor, Value, on_host

ROLES = ("vision", "embeddings", "compressor", "decoder")


class OnnxBackend:
    """A bundle's four graphs in onnxruntime; see `Backend`."""

    name = "onnxruntime"
    remedy = "export with a higher --visual-tokens"
    batch: int | None = None

    def __init__(
        self, engines: dict[str, Engine], model: ModelFacts, limits: Limits, device: str
    ) -> None:
        """Put opened graphs together; use `OnnxBackend.open`."""
        self.device = device
        self.visual_tokens, self.capacity = limits.visual_tokens, limits.prompt_tokens
        self._engines = engines
        self._decoder = Decoder(engines["decoder"], model, self.embed)

    @classmethod
    def open(cls, bundle: Bundle, *, device: str, threads: int) -> "OnnxBackend":
        """Open a bundle's graphs.

        Args:
            bundle: An open bundle.
            device: "auto", "cpu" or "cuda".
            threads: Threads within an operator; 0 leaves it to onnxruntime.

        Raises:
            BackendError: The device cannot be had, or cannot run the bundle's precision.
            BundleError: A graph that is not what the manifest says.
        """
        device = resolve_device(device)
        precision = bundle.manifest.precision
        check_precision(bundle.root, precision, device)
        engines: dict[str, Engine] = {}
        for role in ROLES:
            engine = OnnxEngine(
                bundle.file(role), OnnxOptions(device=device, threads=threads, precision=precision)
            )
            bundle.check_graph(role, engine.inputs, engine.outputs)
            engines[role] = engine
        return cls(engines, bundle.manifest.model, bundle.manifest.limits, device)

    def encode(self, vision: Vision, meanwhile: Callable[[], None] | None = None) -> Value:
        """Visual tokens; `meanwhile` is done before. See `Backend.encode`."""
        if meanwhile is not None:
            meanwhile()
        return self._run("vision", vision.feeds)["visual_embeds"]

    def place(self, feeds: Feeds) -> Feeds:
        """What `compress` takes, on the host as it is."""
        return feeds

    def compress(self, feeds: Feeds) -> dict[str, Value]:
        """The prompt with fewer visual tokens; see `Backend.compress`."""
        return self._run("compressor", feeds)

    def _run(self, role: str, feeds: Feeds) -> dict[str, Value]:
        """Run a graph."""
        return self._engines[role].run(feeds)

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.generic]:
        """Embedding rows, on the host; see `Backend.embed`."""
        return self._run("embeddings", {"token_ids": token_ids})["text_embeds"].numpy()

    def merge(
        self,
        text_embeds: Tensor,
        visual_embeds: Tensor,
        text_index: NDArray[np.int64],
        visual_index: NDArray[np.int64],
    ) -> NDArray[np.generic]:
        """The whole prompt, on the host; see `Backend.merge`."""
        rows = on_host(text_embeds)
        embeds = np.empty((1, len(text_index) + len(visual_index), rows.shape[1]), rows.dtype)
        embeds[0, text_index] = rows
        embeds[0, visual_index] = on_host(visual_embeds)
        return embeds

    def start(self, capacity: int) -> Sequence:
        """Begin a sequence; its cache grows, so `capacity` is not asked for."""
        return self._decoder.start()

    def start_batch(self, extents: Collection[Extent]) -> Batch:
        """Begin sequences that decode together; their cache grows, so that they may be of any size."""
        return self._decoder.start_batch(len(extents))

    def close(self) -> None:
        """Free every graph."""
        for engine in self._engines.values():
            engine.close()
