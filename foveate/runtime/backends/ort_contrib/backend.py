"""onnxruntime on graphs of its contrib operators: nothing leaves the device before the first token."""

import threading
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import GATHER
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError
from foveate.families.base import Prompt, VisualInput
from foveate.runtime.backends.base import VisualBackend
from foveate.runtime.backends.buckets import bucket
from foveate.runtime.backends.ort.memory import upload, zeros
from foveate.runtime.backends.ort.session import OnnxOptions, resolve_device
from foveate.runtime.backends.ort_contrib.compressor_inputs import KeptIndices, compressor_inputs
from foveate.runtime.backends.ort_contrib.decoder import (
    KeptPositions,
    SlotDecoder,
    prompt_bucket,
)
from foveate.runtime.backends.ort_contrib.io_binding import IoBoundEngine
from foveate.runtime.backends.ort_contrib.padding import PICTURE, PaddedRun, Padding
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.finite import remedy
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.tensors import DeviceTensor, Feeds, Tensor

HOST = {
    "vision": (),
    GATHER: (),
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
CPU_PART = 256
"""On a CPU a video is run in parts of about so many visual tokens."""
MOST_UPLOADED = 256
"""How many inputs of different sizes a thread has memory for."""


class ContribBackend(VisualBackend):
    """A bundle of contrib operators in onnxruntime; see `VisualBackend`."""

    name = "onnxruntime"
    remedy = "export with a higher --visual-tokens"
    engines: Mapping[str, IoBoundEngine]
    graph: SlotDecoder

    def __init__(
        self, bundle: Bundle, engines: dict[str, IoBoundEngine], table: EmbeddingTable, device: str
    ) -> None:
        """Put opened graphs together; use `ContribBackend.open`."""
        super().__init__(table)
        manifest = bundle.manifest
        self.device, self.visual_tokens = device, manifest.limits.visual_tokens
        self.engines, self._width = engines, manifest.model.hidden_size
        self._dtype = engines["vision"].types["visual_embeds"]
        self._own, self._padding = threading.local(), Padding()
        most = manifest.limits.prompt_tokens
        advice = remedy(manifest.precision, "export the checkpoint with --precision bf16")
        self.graph = SlotDecoder(engines["decoder"], manifest.model, table, most, advice)

    @classmethod
    def open(cls, bundle: Bundle, *, device: str, threads: int) -> "ContribBackend":
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
                f"{bundle.root}: its graphs are {precision}, and onnxruntime's contrib operators run "
                f"{fits}; export with another --precision, or with --operators standard"
            )
        table = EmbeddingTable(bundle)
        engines: dict[str, IoBoundEngine] = {}
        for role, host in HOST.items():
            if role not in bundle.manifest.graphs and role == GATHER:
                continue
            options = OnnxOptions(device=device, threads=threads)
            engine = IoBoundEngine(bundle.file(role), options, host)
            bundle.check_graph(role, engine.inputs, engine.outputs)
            engines[role] = engine
        return cls(bundle, engines, table, device)

    def run_vision(self, visual: VisualInput, lasting: bool) -> DeviceTensor:
        """Visual tokens, call by call into one tensor; see `VisualBackend.run_vision`."""
        engine, width = self.engines["vision"], self._width
        counts = [call.tokens for call in visual.calls]
        spill = max(bucket(count, PICTURE) - count for count in counts)
        whole = self._visual_memory(sum(counts), spill, lasting)
        start = 0
        for call in visual.calls:
            # What a CPU runs has no padding, and bounded memory.
            runs = (
                self._padding.runs(call)
                if engine.captures
                else [PaddedRun(part, part.rows) for part in call.parts(CPU_PART)]
            )
            alone = len(counts) == len(runs) == 1
            for run in runs:
                # Padding is written to where the next picture goes, or after the last.
                into = {"visual_embeds": whole.viewed((run.rows, width), start * width)}
                capture = run.repeats or None if alone and not lasting else False
                engine.run(run.call.inputs, {}, into, capture=capture)
                start += run.call.tokens
        return whole.viewed((sum(counts), width))

    def gather_visual(self, feeds: Feeds, lasting: bool) -> DeviceTensor:
        """Visual tokens, in the thread's own memory or in new memory that lasts."""
        shape = (feeds["rows"].shape[0], self._width)
        if lasting:
            into = zeros(shape, self._dtype, self.device)
        else:
            into = self._memory("gathered", shape, self._dtype)
        run = self.engines[GATHER].run(feeds, {}, {"visual_embeds": into}, capture=False)
        return run["visual_embeds"]

    def stage_ranking(self, prompt: Prompt, text_embeds: NDArray[np.generic], keep: int) -> Feeds:
        """The compressor's inputs in the thread's own memory, padded on CUDA."""
        unit = TEXT if self.engines["compressor"].captures else 1
        inputs = compressor_inputs(prompt, text_embeds, keep, unit)
        # Allocated while the device encodes, and not first in `rank`, which is waited for.
        self._prompt_memory(len(inputs["text_embeds"]) + keep)
        return {
            name: array if name in HOST["compressor"] else self._uploaded(name, array)
            for name, array in inputs.items()
        }

    def rank(self, visual_embeds: Tensor, feeds: Feeds, prompt: Prompt, count: int) -> KeptPrompt:
        """Run the compressor; its outputs stay on the device."""
        visual = visual_embeds.shape[0]
        rows = feeds["text_embeds"].shape[0] + count
        outputs = self.engines["compressor"].run(
            {**feeds, "visual_embeds": visual_embeds},
            {"kept_rows": (rows,), "relevance": (visual,), "scores": (visual,)},
            self._prompt_memory(rows),
        )
        return KeptPrompt(
            prompt,
            prompt.length_with(count),
            outputs["inputs_embeds"],
            KeptPositions(outputs["kept_position_ids"]),
            KeptIndices(outputs["kept_rows"], visual),
            outputs["relevance"],
            outputs["scores"],
            self.graph.advice,
        )

    def gather(
        self, text_embeds: NDArray[np.generic], visual_embeds: Tensor, order: NDArray[np.int64]
    ) -> DeviceTensor:
        """The prompt's rows, on the device, by the merge graph."""
        return self.engines["merge"].run(
            {"text_embeds": text_embeds, "visual_embeds": visual_embeds, "order": order},
            {},
            {"inputs_embeds": self._memory("prompt", (1, len(order), self._width), self._dtype)},
        )["inputs_embeds"]

    def _visual_memory(self, tokens: int, spill: int, lasting: bool) -> DeviceTensor:
        """Memory for visual tokens and padding after them: the thread's own, or new memory that lasts."""
        shape = (tokens + spill, self._width)
        return (
            zeros(shape, self._dtype, self.device)
            if lasting
            else self._memory("visual", shape, self._dtype)
        )

    def _prompt_memory(self, count: int) -> dict[str, DeviceTensor]:
        """The thread's memory for a prompt of `count` tokens and its positions."""
        return {
            "inputs_embeds": self._memory("prompt", (1, count, self._width), self._dtype),
            "kept_position_ids": self._memory("positions", (count, self.graph.axes), "int64"),
        }

    def _memory(self, name: str, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """The thread's own memory [..., S, width] for what graphs hand on; it grows, and is used again."""
        views: dict[Any, DeviceTensor] = self._own.__dict__.setdefault(name, {})
        if shape not in views:
            whole = next(iter(views.values()), None)
            if whole is None or whole.room < prod(shape):
                for engine in self.engines.values():
                    engine.forget(views.values())
                # Cleared, so that padding is finite; doubled, as captured calls of it are lost.
                room = ROOM << ((prompt_bucket(shape[-2]) - 1) // ROOM).bit_length()
                whole = zeros((room, shape[-1]), dtype, self.device)
                views.clear()
            if len(views) >= MOST_UPLOADED:
                views.clear()
            views.setdefault(whole.shape, whole)
            views[shape] = whole.viewed(shape)
        return views[shape]

    def _uploaded(self, name: str, array: NDArray[Any]) -> DeviceTensor:
        """An array in memory that the thread has for an input of these sizes."""
        memory: dict[Any, DeviceTensor] = self._own.__dict__.setdefault("uploaded", {})
        key = name, array.shape
        if key not in memory:
            if len(memory) >= MOST_UPLOADED:
                memory.clear()
            dtype = self.engines["compressor"].types[name]
            memory[key] = upload(np.array(array, order="C"), dtype, self.device)
        else:
            memory[key].write(array)
        return memory[key]
