"""TensorRT: a target's engines on one GPU; what lies between them stays there."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.reader import Bundle
from foveate.errors import BackendError
from foveate.families.base import VisualInput
from foveate.machine import capability
from foveate.runtime.backends.base import StandardBackend
from foveate.runtime.backends.trt.choose import choose_engines
from foveate.runtime.backends.trt.cuda import Gpu, load_cuda
from foveate.runtime.backends.trt.decoder import DoubleBufferDecoder, WriteIndexDecoder
from foveate.runtime.backends.trt.engine import Opener, TensorRTEngine
from foveate.runtime.backends.trt.fit import rebuild
from foveate.runtime.backends.trt.library import installed_version
from foveate.runtime.backends.trt.ranges import largest
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.tensors import DeviceTensor, Tensor, held, on_host


class TensorRTBackend(StandardBackend):
    """A target's three engines; see `VisualBackend`.

    Attributes:
        target: The target's name.
        gpu: The GPU.
    """

    name = "tensorrt"
    device = "cuda"
    engines: Mapping[str, TensorRTEngine]

    def __init__(
        self, bundle: Bundle, gpu: Gpu, engines: dict[str, TensorRTEngine], table: EmbeddingTable
    ) -> None:
        """Put opened engines together; use `TensorRTBackend.open`."""
        super().__init__(table)
        manifest, decoder = bundle.manifest, engines["decoder"]
        self.target, self.gpu, self.engines = decoder.variant.target, gpu, engines
        limits, ranges = manifest.limits, engines["compressor"].variant
        self.visual_tokens = min(limits.visual_tokens, largest(ranges, "visual_embeds", 0))
        self.remedy = (
            f"build engines with larger ranges: {rebuild(bundle, self.target)} --targets FILE"
        )
        model, most = manifest.model, limits.prompt_tokens
        form = WriteIndexDecoder if decoder.variant.decoder == "static" else DoubleBufferDecoder
        self.graph = form(decoder, model, table, most)

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

    def run_vision(self, visual: VisualInput, lasting: bool) -> DeviceTensor:
        """The vision engine's rows, a picture a run where calls can be cut; copied into one tensor."""
        engine = self.engines["vision"]
        parts = [part for call in visual.calls for part in call.parts(1)]
        outputs = [engine.run(part.inputs)["visual_embeds"] for part in parts]
        counts = [part.tokens for part in parts]
        if len(outputs) == 1 and outputs[0].shape[0] == counts[0]:
            return outputs[0]
        with self.gpu.lock:
            whole = self.gpu.empty((sum(counts), outputs[0].shape[1]), outputs[0].dtype)
            start = 0
            for output, count in zip(outputs, counts, strict=True):
                self.gpu.copy(output, whole, 0, start, count)
                start += count
            return whole

    def gather(
        self, text_embeds: NDArray[np.generic], visual_embeds: Tensor, order: NDArray[np.int64]
    ) -> DeviceTensor:
        """The prompt's rows, copied within the GPU."""
        texts = len(text_embeds)
        with self.gpu.lock:
            visual = self._on_device(visual_embeds, self.table.dtype)
            text = self.gpu.upload(text_embeds, self.table.dtype)
            width = text.shape[1]
            whole = self.gpu.empty((1, len(order), width), text.dtype)
            if held(visual.dtype) != held(whole.dtype) or visual.shape[1:] != (width,):
                raise BackendError(
                    f"{visual.dtype} {list(visual.shape)} cannot be merged into {whole.dtype} "
                    f"{list(whole.shape)}; export the checkpoint again"
                )
            for begin, row, count in consecutive(order, texts):
                source, start = (text, row) if row < texts else (visual, row - texts)
                self.gpu.copy(source, whole, start, begin, count)
            return whole

    def close(self) -> None:
        """Free every engine, and all memory."""
        super().close()
        self.gpu.close()

    def _on_device(self, tensor: Tensor, dtype: str) -> DeviceTensor:
        """A tensor on the GPU, which it may be already."""
        if isinstance(tensor, DeviceTensor):
            return tensor
        return self.gpu.upload(on_host(tensor), dtype)


def consecutive(rows: NDArray[np.int64], border: int) -> Iterator[tuple[int, int, int]]:
    """Where rows that follow each other stay together: (to which place, from which row, how many).

    Rows below `border` and those from it on are never taken together.
    """
    if not len(rows):
        return
    breaks = (np.diff(rows) != 1) | ((rows[:-1] < border) != (rows[1:] < border))
    places = np.flatnonzero(breaks) + 1
    for start, end in zip([0, *places], [*places, len(rows)], strict=True):
        yield int(start), int(rows[start]), int(end - start)
