"""onnxruntime on graphs of its own fused operators: nothing leaves the device before the first token."""

import threading
from collections.abc import Callable, Collection
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.reader import Bundle
from foveate.errors import BackendError
from foveate.families.base import Vision
from foveate.runtime.backends.ort.session import OnnxOptions, resolve_device
from foveate.runtime.backends.ort_contrib.buckets import bucket
from foveate.runtime.backends.ort_contrib.compressor_inputs import KeptIndices, arrange
from foveate.runtime.backends.ort_contrib.io_binding import BoundEngine, BoundTensor
from foveate.runtime.backends.ort_contrib.padding import PICTURE, Padding, Part
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.language.base import Batch, Extent, Sequence
from foveate.runtime.language.static_decoder import Positions, SharedDecoder, filled
from foveate.runtime.tensors import Feeds, Tensor, Value, length, on_host

HOST = {
    "vision": (),
    "compressor": ("keep",),
    "merge": (),
    "decoder": ("total_sequence_length",),
}
"""Each graph's role, and its inputs that are read from host memory."""
TEXT = 32
"""The compressor takes text and instruction as multiples of this: questions about as long as earlier ones
are then launched as a CUDA graph that there is."""
ROOM = 1024
"""Memory for a prompt has so many tokens, or twice or four times … as many."""
MOST_PLACED = 256
"""How many inputs of different sizes a thread has memory for."""


class FusedBackend:
    """A fused bundle in onnxruntime, embedding rows from the host; see `Backend`."""

    name = "onnxruntime"
    batch: int | None = None

    def __init__(
        self, bundle: Bundle, engines: dict[str, BoundEngine], table: EmbeddingTable, device: str
    ) -> None:
        """Put opened graphs together; use `FusedBackend.open`."""
        manifest = bundle.manifest
        self.device = device
        self.visual_tokens = manifest.limits.visual_tokens
        self.capacity = manifest.limits.prompt_tokens
        self.remedy = "export with a higher --visual-tokens"
        self._engines, self._table = engines, table
        self._width = manifest.model.hidden_size
        self._dtype = engines["vision"].types["visual_embeds"]
        self._own, self._padding = threading.local(), Padding()
        self._decoder = SharedDecoder(engines["decoder"], manifest.model, table, self.capacity)

    @classmethod
    def open(cls, bundle: Bundle, *, device: str, threads: int) -> "FusedBackend":
        """Open a bundle's graphs.

        Args:
            bundle: An open bundle whose operators are onnxruntime's.
            device: "auto", "cpu" or "cuda".
            threads: Threads within an operator; 0 leaves it to onnxruntime.

        Raises:
            BackendError: The device cannot be had, or has no kernels for the bundle's precision.
            BundleError: A graph that is not what the manifest says.
        """
        device, precision = resolve_device(device), bundle.manifest.precision
        if (device == "cpu") != (precision == "fp32"):
            fits = "fp16 or bf16 on cuda" if device == "cuda" else "fp32 on the CPU"
            raise BackendError(
                f"{bundle.root}: its graphs are {precision}, and onnxruntime's fused operators run "
                f"{fits}; export with another --precision, or with --operators standard"
            )
        table = EmbeddingTable(bundle)
        engines: dict[str, BoundEngine] = {}
        for role, host in HOST.items():
            options = OnnxOptions(device=device, threads=threads)
            engine = BoundEngine(bundle.file(role), options, host)
            bundle.check_graph(role, engine.inputs, engine.outputs)
            engines[role] = engine
        return cls(bundle, engines, table, device)

    def encode(self, vision: Vision, meanwhile: Callable[[], None] | None = None) -> BoundTensor:
        """Visual tokens, picture by picture into one tensor; see `Backend.encode`."""
        engine, width = self._engines["vision"], self._width
        counts = [int(np.prod(grid)) for grid in vision.grids]
        spill = max(bucket(count, PICTURE) - count for count in counts)
        whole = self._memory("visual", (sum(counts) + spill, width), self._dtype)
        start = 0
        for run, count in zip(vision.runs, counts, strict=True):
            parts = self._parts(run, count)
            alone = len(counts) == len(parts) == 1
            for part in parts:
                # What fills a picture up lies where the next one is written, or after the last.
                into = {"visual_embeds": whole.viewed((part.tokens, width), start * width)}
                record = part.again or None if alone else False
                engine.run(part.feeds, {}, into, record=record, meanwhile=meanwhile)
                meanwhile = None
                start += part.count
        return whole.viewed((sum(counts), width))

    def place(self, feeds: Feeds) -> Feeds:
        """What `compress` takes, in the thread's own memory, filled up on CUDA. See `Backend.place`."""
        captures = self._engines["compressor"].captures
        arranged = arrange(feeds, TEXT if captures else 1)
        # Looked up while the device encodes, and not first in `compress`, which is waited for.
        self._kept(len(arranged["text_embeds"]) + int(arranged["keep"][0]))
        return {
            name: array if name in HOST["compressor"] else self._placed(name, array)
            for name, array in arranged.items()
        }

    def compress(self, feeds: Feeds) -> dict[str, Value]:
        """The prompt with fewer visual tokens; see `Backend.compress`."""
        keep, visual = int(on_host(feeds["keep"])[0]), length(feeds["visual_embeds"])
        count = length(feeds["text_embeds"]) + keep
        outputs = self._engines["compressor"].run(
            feeds,
            {"kept_rows": (count,), "relevance": (visual,), "scores": (visual,)},
            self._kept(count),
        )
        return {
            "inputs_embeds": outputs["inputs_embeds"],
            "kept_position_ids": Positions(outputs["kept_position_ids"]),
            "kept_indices": KeptIndices(outputs["kept_rows"], visual, keep),
            "relevance": outputs["relevance"],
            "scores": outputs["scores"],
        }

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.generic]:
        """Embedding rows, on the host; see `Backend.embed`."""
        return self._table.look_up(token_ids)

    def merge(
        self,
        text_embeds: Tensor,
        visual_embeds: Tensor,
        text_index: NDArray[np.int64],
        visual_index: NDArray[np.int64],
    ) -> BoundTensor:
        """The whole prompt, on the device; see `Backend.merge`."""
        count = len(text_index) + len(visual_index)
        order = np.argsort(np.concatenate([text_index, visual_index])).astype(np.int64)
        return self._engines["merge"].run(
            {"text_embeds": text_embeds, "visual_embeds": visual_embeds, "order": order},
            {},
            {"inputs_embeds": self._kept(count)["inputs_embeds"]},
        )["inputs_embeds"]

    def start(self, capacity: int) -> Sequence:
        """Begin a sequence; see `Backend.start`."""
        return self._decoder.start(capacity)

    def start_batch(self, extents: Collection[Extent]) -> Batch:
        """Begin sequences that decode together; see `Backend.start_batch`."""
        return self._decoder.start_batch(extents)

    def _parts(self, feeds: dict[str, NDArray[Any]], count: int) -> list[Part]:
        """The runs that a picture or a video takes: one as it is, unless runs become CUDA graphs."""
        if not self._engines["vision"].captures:
            return [Part(feeds, count, count)]
        return self._padding.parts(feeds, count)

    def _kept(self, count: int) -> dict[str, BoundTensor]:
        """The thread's memory for a prompt of `count` tokens and its positions."""
        return {
            "inputs_embeds": self._memory("prompt", (1, count, self._width), self._dtype),
            "kept_position_ids": self._memory("places", (count, self._decoder.axes), "int64"),
        }

    def _memory(self, name: str, sizes: tuple[int, ...], dtype: str) -> BoundTensor:
        """The thread's own memory [..., S, width] for what graphs hand on; it grows, and is used again."""
        views: dict[Any, BoundTensor] = self._own.__dict__.setdefault(name, {})
        if sizes not in views:
            whole = next(iter(views.values()), None)
            if whole is None or whole.room < prod(sizes):
                for engine in self._engines.values():
                    engine.forget(views.values())
                # Cleared, so that what pads a bucket is finite; doubled, as what was recorded is lost.
                room = ROOM << ((filled(sizes[-2]) - 1) // ROOM).bit_length()
                whole = BoundTensor.zeros((room, sizes[-1]), dtype, self.device)
                views.clear()
            if len(views) >= MOST_PLACED:
                views.clear()
            views.setdefault(whole.sizes, whole)
            views[sizes] = whole.viewed(sizes)
        return views[sizes]

    def _placed(self, name: str, array: NDArray[Any]) -> BoundTensor:
        """An array in memory that the thread has for an input of these sizes."""
        memory: dict[Any, BoundTensor] = self._own.__dict__.setdefault("placed", {})
        key = name, array.shape
        if key not in memory:
            if len(memory) >= MOST_PLACED:
                memory.clear()
            dtype = self._engines["compressor"].types[name]
            memory[key] = BoundTensor.copied(np.array(array, order="C"), dtype, self.device)
        else:
            memory[key].write(array)
        return memory[key]

    def close(self) -> None:
        """Free every graph."""
        for engine in self._engines.values():
            engine.close()
