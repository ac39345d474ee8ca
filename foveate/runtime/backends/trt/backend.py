"""TensorRT: a target's engines on one GPU; what lies between them stays there."""

from collections.abc import Callable, Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.reader import Bundle
from foveate.errors import BackendError
from foveate.families.base import Vision
from foveate.machine import capability
from foveate.runtime.backends.trt.choose import choose_engines
from foveate.runtime.backends.trt.cuda import DeviceTensor, Gpu, load_cuda
from foveate.runtime.backends.trt.engine import Opener, TensorRTEngine, installed_version
from foveate.runtime.backends.trt.fit import rebuild
from foveate.runtime.backends.trt.ranges import largest
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.language.base import Alone, Batch, Extent, Sequence
from foveate.runtime.language.growing_decoder import DeviceDecoder
from foveate.runtime.language.static import StaticDecoder
from foveate.runtime.tensors import Feeds, Tensor, Value, on_host


class TensorRTBackend:
    """A target's three engines, and embedding rows from the host; see `Backend`.

    Attributes:
        target: The target's name.
        gpu: The GPU.
        engines: The engines by role.
    """

    device = "cuda"
    batch: int | None = 1

    def __init__(
        self, bundle: Bundle, gpu: Gpu, engines: dict[str, TensorRTEngine], table: EmbeddingTable
    ) -> None:
        """Put opened engines together; use `TensorRTBackend.open`."""
        variant = engines["vision"].variant
        self.name = "tensorrt"
        self.target, self.gpu, self.engines = variant.target, gpu, engines
        self._table = table
        drive = StaticDecoder if engines["decoder"].variant.decoder == "static" else DeviceDecoder
        self._decoder = drive(engines["decoder"], bundle.manifest.model, table)
        limits, seen = bundle.manifest.limits, engines["compressor"].variant
        self.visual_tokens = min(limits.visual_tokens, largest(seen, "visual_embeds", 0))
        self.capacity = min(limits.prompt_tokens, self._decoder.capacity)
        self.remedy = (
            f"build engines with larger ranges: {rebuild(bundle, self.target)} --targets FILE"
        )

    @classmethod
    def open(cls, bundle: Bundle, target: str | None = None) -> "TensorRTBackend":
        """Load the engines of a target.

        Args:
            bundle: An open bundle.
            target: The target's name; None where only one fits this machine.

        Raises:
            BackendError: No engines fit this machine, several targets do, or they do not load.
            MissingDependencyError: TensorRT or cuda-bindings is not installed.
        """
        chosen = choose_engines(bundle, target, capability(), installed_version)
        table = EmbeddingTable(bundle)
        gpu = Gpu(load_cuda())
        try:
            opener = Opener(chosen["vision"].library, gpu)
            engines = {role: opener.open(bundle, variant) for role, variant in chosen.items()}
            return cls(bundle, gpu, engines, table)
        except BaseException:
            gpu.close()
            raise

    def encode(self, vision: Vision, meanwhile: Callable[[], None] | None = None) -> Value:
        """Visual tokens; see `Backend.encode`."""
        return self._run("vision", vision.feeds, meanwhile)["visual_embeds"]

    def place(self, feeds: Feeds) -> Feeds:
        """What `compress` takes, on the host as it is."""
        return feeds

    def compress(self, feeds: Feeds) -> dict[str, Value]:
        """The prompt with fewer visual tokens; see `Backend.compress`."""
        return self._run("compressor", feeds)

    def _run(
        self, role: str, feeds: Feeds, meanwhile: Callable[[], None] | None = None
    ) -> dict[str, Value]:
        """Run an engine and wait for it, doing `meanwhile` before."""
        with self.gpu.lock:
            outputs = self.engines[role].run(feeds)
            try:
                if meanwhile is not None:
                    meanwhile()
            finally:
                self.gpu.synchronize()
            return outputs

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.generic]:
        """Embedding rows, on the host; see `Backend.embed`."""
        return self._table.look_up(token_ids)

    def merge(
        self,
        text_embeds: Tensor,
        visual_embeds: Tensor,
        text_index: NDArray[np.int64],
        visual_index: NDArray[np.int64],
    ) -> DeviceTensor:
        """The whole prompt, on the GPU; see `Backend.merge`."""
        with self.gpu.lock:
            parts = [
                (self._on_device(text_embeds), text_index),
                (self._on_device(visual_embeds), visual_index),
            ]
            width = parts[0][0].sizes[1]
            total = len(text_index) + len(visual_index)
            whole = self.gpu.empty((1, total, width), parts[0][0].dtype)
            for tensor, index in parts:
                if tensor.dtype != whole.dtype or tensor.sizes != (len(index), width):
                    raise BackendError(
                        f"{tensor.dtype} {list(tensor.sizes)} cannot be merged into {whole.dtype} "
                        f"{list(whole.sizes)}; export the checkpoint again"
                    )
                for start, row, count in runs(index):
                    self.gpu.copy(tensor, whole, start, row, count)
            self.gpu.synchronize()
            return whole

    def start(self, capacity: int) -> Sequence:
        """Begin a sequence; see `Backend.start`."""
        return self._decoder.start(capacity)

    def start_batch(self, extents: Collection[Extent]) -> Batch:
        """Begin one sequence, which is all that engines are built for; see `Backend.start_batch`."""
        (extent,) = extents
        return Alone(self.start(extent.capacity))

    def close(self) -> None:
        """Free every engine, and all memory."""
        for engine in self.engines.values():
            engine.close()
        self.gpu.close()

    def _on_device(self, tensor: Tensor) -> DeviceTensor:
        """A tensor on the GPU, which it may be already."""
        if isinstance(tensor, DeviceTensor):
            return tensor
        return self.gpu.upload(on_host(tensor))


def runs(index: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Where consecutive rows stay consecutive: (from which row, to which row, how many)."""
    if not len(index):
        return
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    for start, end in zip([0, *breaks], [*breaks, len(index)], strict=True):
        yield int(start), int(index[start]), int(end - start)
