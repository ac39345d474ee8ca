"""onnxruntime by I/O binding: every input and output where it lies, and calls that repeat as CUDA graphs."""

import itertools
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.bundle.manifest import TensorSpec
from foveate.errors import BackendError, ClosedError
from foveate.runtime.backends.cuda_graphs import CudaGraphs
from foveate.runtime.backends.ort.capture_gate import GATE
from foveate.runtime.backends.ort.library import ort
from foveate.runtime.backends.ort.memory import OrtMemory, advice, empty, upload, zeros
from foveate.runtime.backends.ort.session import OnnxOptions, open_session, spec
from foveate.runtime.tensors import Call, DeviceTensor, Feeds

TYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "bfloat16": 16}
"""ONNX's numbers of the types that graphs here take and give."""
CAPTURING = {"enable_cuda_graph": "1", "use_tf32": "1"}
"""What the CUDA provider is told: capture runs that are numbered; the little that half-precision graphs
do in float32 has factors no more exact than TF32's."""
MOST_GRAPHS = 32
NOT_CAPTURED = -1
"""What onnxruntime takes as the number of a run that is not to be captured."""


@dataclass(slots=True)
class Binding:
    """What onnxruntime runs of a call.

    Attributes:
        binding: Its I/O binding.
        options: For a run that is waited for.
        enqueued: For a run that returns when it is enqueued; None on a CPU.
        alive: What the runs read and write.
        number: Of its CUDA graph; None where it has none. onnxruntime captures it for each thread, in
            the thread's first run.
    """

    binding: Any
    options: Any
    enqueued: Any
    alive: Any
    number: int | None


class IoBoundEngine:
    """One session; its runs are in order, and return on a device before they are done.

    A call whose shapes, and whose inputs on the device, are those of an earlier one gets memory of its
    own and is captured as a CUDA graph, for the thread that makes it.
    """

    def __init__(self, path: Path, options: OnnxOptions, host: tuple[str, ...] = ()) -> None:
        """Open the graph at `path`; the inputs named in `host` are read from host memory.

        Raises:
            BackendError: Unreadable graph, an operator the device lacks, or another provider was given.
        """
        self.captures = options.device == "cuda"
        session = open_session(path, options, CAPTURING if self.captures else None)
        self.path, self.device, self.host = path, options.device, host
        self.inputs: tuple[TensorSpec, ...] = tuple(spec(node) for node in session.get_inputs())
        self.outputs: tuple[TensorSpec, ...] = tuple(spec(node) for node in session.get_outputs())
        self.types: dict[str, str] = {one.name: one.dtype for one in (*self.inputs, *self.outputs)}
        self.session: Any = session
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)
        self.graphs: CudaGraphs[Call] = CudaGraphs(MOST_GRAPHS)
        self.pending: list[Binding] = []
        self.own = threading.local()

    def run(
        self,
        feeds: Feeds,
        shapes: Mapping[str, tuple[int, ...]],
        into: Mapping[str, DeviceTensor] | None = None,
        *,
        capture: bool | None = None,
    ) -> dict[str, DeviceTensor]:
        """Enqueue a run; outputs wait when they are read.

        Args:
            feeds: Arrays, and tensors of other engines, by input.
            shapes: Of the outputs to give in memory of their own. Where a call is captured, it is the
                same memory each time: its values hold until the same thread makes the same call again.
            into: The outputs to write to memory that is there.
            capture: Whether the call becomes a CUDA graph, of which there are `MOST_GRAPHS` at most: at
                once (True), never (False), or if it is like an earlier one (None).

        Raises:
            BackendError: onnxruntime refused the inputs or failed.
            ClosedError: The engine was closed.
        """
        into = into or {}
        with self.lock:
            key = self._key(feeds, shapes, into)
            call = self.graphs.get(key)
            if call is None:
                captured = self.captures and self.graphs.wants(key, capture)
                own = {
                    name: empty(shape, self.types[name], self.device)
                    for name, shape in shapes.items()
                }
                call = self.bind(feeds, {**own, **into}, captured=captured)
                if captured:
                    self.graphs.put(key, call)
            else:
                for name, value in feeds.items():
                    if isinstance(value, np.ndarray) and name not in self.host:
                        call.inputs[name].write(value)
            self.repeat(call)
            return call.outputs

    def bind(
        self, feeds: Feeds, into: Mapping[str, DeviceTensor], *, captured: bool = True
    ) -> Call:
        """Bind inputs and outputs without running; arrays are copied to memory of their own.

        Args:
            feeds: Arrays, and tensors, by input.
            into: Where to write, by output; all others are left out.
            captured: Whether it becomes a CUDA graph when it is first run.

        Raises:
            BackendError: There is no memory for the inputs.
            ClosedError: The engine was closed.
        """
        if self.session is None:
            raise ClosedError(f"{self.path}: the engine is closed")
        binding = self.session.io_binding()
        inputs: dict[str, DeviceTensor] = {}
        for name, value in feeds.items():
            device = "cpu" if name in self.host else self.device
            if isinstance(value, np.ndarray):
                array = np.array(value, order="C") if captured else np.ascontiguousarray(value)
                value = upload(array, self.types[name], device)
            inputs[name] = value
            kind = TYPES[self.types[name]]
            binding.bind_input(name, device, 0, kind, list(value.shape), value.address)
        for name, tensor in into.items():
            kind = TYPES[self.types[name]]
            binding.bind_output(name, self.device, 0, kind, list(tensor.shape), tensor.address)
        options, enqueued, number = ort.RunOptions(), None, None
        if self.captures:
            enqueued = ort.RunOptions()
            enqueued.add_run_config_entry("disable_synchronize_execution_providers", "1")
            number = next(self.numbers) if captured else None
            for one in (options, enqueued):
                one.add_run_config_entry("gpu_graph_id", str(number or NOT_CAPTURED))
        outputs = dict(into)
        return Call(inputs, outputs, Binding(binding, options, enqueued, (inputs, outputs), number))

    def repeat(self, call: Call) -> None:
        """Enqueue a bound call on what is in its memory now.

        Raises:
            BackendError: onnxruntime failed.
            ClosedError: The engine was closed.
        """
        with self.lock:
            if self.session is None:
                raise ClosedError(f"{self.path}: the engine is closed")
            handle: Binding = call.handle
            for tensor in call.inputs.values():
                # Another engine has a stream of its own, which this one's does not wait for.
                if getattr(tensor.memory, "writer", None) is not self:
                    tensor.wait()
            captured: set[int | None] = self.own.__dict__.setdefault("captured", {None})
            capturing = handle.number not in captured
            captured.add(handle.number)
            options = handle.options if capturing else handle.enqueued or handle.options
            try:
                with GATE.capture() if capturing else GATE:
                    self.session.run_with_iobinding(handle.binding, options)
            except Exception as error:
                raise BackendError(f"{self.path.name}: {advice(error)}") from error
            if options is handle.enqueued:
                self.pending.append(handle)
                for tensor in call.outputs.values():
                    assert isinstance(tensor.memory, OrtMemory)
                    tensor.memory.writer = self

    def wait(self) -> None:
        """Wait for all runs that were enqueued."""
        with self.lock:
            if self.pending:
                # Runs are in order: when the last is done, so are those before.
                with GATE:
                    self.pending[-1].binding.synchronize_outputs()
                self.pending.clear()

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """Memory on the engine's device for a tensor of zeros.

        Raises:
            BackendError: There is not as much.
        """
        return zeros(shape, dtype, self.device)

    def forget(self, tensors: Collection[DeviceTensor]) -> None:
        """Let go of calls that read or write these tensors."""
        gone = {tensor.address for tensor in tensors}

        def touches(call: Call) -> bool:
            """Whether a call has one of them."""
            bound = (*call.inputs.values(), *call.outputs.values())
            return any(tensor.address in gone for tensor in bound)

        with self.lock:
            self.graphs.drop(touches)

    def close(self) -> None:
        """Free the session."""
        with self.lock:
            self.wait()
            self.graphs.clear()
            self.session = None

    def _key(
        self,
        feeds: Feeds,
        shapes: Mapping[str, tuple[int, ...]],
        into: Mapping[str, DeviceTensor],
    ) -> Any:
        """What two calls must have in common to be one CUDA graph."""
        taken: list[Any] = []
        for name, value in feeds.items():
            if isinstance(value, DeviceTensor):
                taken.append((name, value.shape, value.address))
            else:
                array = np.asarray(value)
                taken.append((name, array.shape, array.tobytes() if name in self.host else None))
        written = [(name, tensor.shape, tensor.address) for name, tensor in into.items()]
        return threading.get_ident(), tuple(taken), tuple(shapes.items()), tuple(written)
