"""onnxruntime with every input and output bound where it lies, and shapes that repeat as CUDA graphs."""

import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import TensorSpec
from foveate.errors import BackendError, ClosedError
from foveate.runtime.backends.ort.library import ort
from foveate.runtime.backends.ort.session import OnnxOptions, first_line, open_session, spec
from foveate.runtime.backends.ort_contrib.buckets import Seen
from foveate.runtime.tensors import Feeds, held

TYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "bfloat16": 16}
"""ONNX's numbers of the types that graphs here take and give."""
CAPTURING = {"enable_cuda_graph": "1", "use_tf32": "1"}
"""What the CUDA provider is told: capture runs that are numbered; the little that half-precision graphs
do in float32 has factors no more exact than TF32's."""
SMALL = 1 << 16
"""Bytes up to which comparing an array with what was written before is quicker than writing it."""
MOST_GRAPHS = 32
OUTSIDE = -1
"""What onnxruntime takes as the number of a run that is not to be captured."""


class BoundTensor:
    """A tensor at an `address` that stays, in memory that may hold more than it."""

    def __init__(
        self, memory: Any, sizes: tuple[int, ...], dtype: str, start: int = 0, source: Any = None
    ) -> None:
        """View `memory`, an OrtValue, from element `start` on; one in host memory may borrow `source`."""
        self.memory, self.sizes, self.dtype, self.start = memory, sizes, dtype, start
        self.source = source
        self.address = int(memory.data_ptr()) + start * held(dtype).itemsize
        self.written: NDArray[Any] | None = None

    @classmethod
    def copied(cls, array: NDArray[Any], dtype: str, device: str) -> "BoundTensor":
        """An array's copy on a device, or the array itself where that is host memory.

        Raises:
            BackendError: There is no memory for it.
        """
        return cls(_placed(array, device), array.shape, dtype, source=array)

    @classmethod
    def empty(cls, sizes: tuple[int, ...], dtype: str, device: str) -> "BoundTensor":
        """Memory for a tensor, with anything in it.

        Raises:
            BackendError: There is not as much.
        """
        kind = held(dtype)
        with taking(prod(sizes) * kind.itemsize, device):
            return cls(
                ort.OrtValue.ortvalue_from_shape_and_type(list(sizes), kind, device, 0),
                sizes,
                dtype,
            )

    @classmethod
    def zeros(cls, sizes: tuple[int, ...], dtype: str, device: str) -> "BoundTensor":
        """Memory for a tensor, cleared.

        Raises:
            BackendError: There is not as much.
        """
        return cls.copied(np.zeros(sizes, held(dtype)), dtype, device)

    @property
    def room(self) -> int:
        """How many elements its memory has from its beginning on."""
        return int(prod(self.memory.shape())) - self.start

    def viewed(self, sizes: tuple[int, ...], start: int = 0) -> "BoundTensor":
        """The same memory as another tensor, beginning `start` elements further on."""
        return BoundTensor(self.memory, sizes, self.dtype, self.start + start, self.source)

    def write(self, array: NDArray[Any]) -> None:
        """Copy an array of the memory's own size into it, unless it is a small one that is there already."""
        if self.written is not None and np.array_equal(self.written, array):
            return
        self.memory.update_inplace(np.ascontiguousarray(array).reshape(self.memory.shape()))
        self.written = np.array(array) if array.nbytes <= SMALL else None

    def shape(self) -> list[int]:
        """Its sizes."""
        return list(self.sizes)

    def numpy(self) -> NDArray[Any]:
        """Copy to host memory; bfloat16 as uint16."""
        whole: NDArray[Any] = self.memory.numpy()
        return whole.reshape(-1)[self.start : self.start + prod(self.sizes)].reshape(self.sizes)


@dataclass(slots=True)
class Call:
    """Inputs and outputs at fixed addresses, ready to run again and again.

    Attributes:
        binding: onnxruntime's.
        options: For a run that is waited for.
        unwaited: For one that is waited for later; None on a CPU.
        inputs: By name.
        outputs: By name.
    """

    binding: Any
    options: Any
    unwaited: Any
    inputs: dict[str, BoundTensor]
    outputs: dict[str, BoundTensor]


class BoundEngine:
    """One session; runs wait for each other.

    A call whose shapes, and whose inputs on the device, are those of an earlier one gets memory of its
    own and is captured as a CUDA graph, for the thread that makes it; `record` asks for it sooner, or not.
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
        self.seen = Seen()
        self.calls: dict[Any, Call] = {}

    def run(
        self,
        feeds: Feeds,
        sizes: Mapping[str, tuple[int, ...]],
        into: Mapping[str, BoundTensor] | None = None,
        *,
        record: bool | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> dict[str, BoundTensor]:
        """Run once.

        Args:
            feeds: Arrays, and tensors of other bound engines, by input.
            sizes: Of the outputs to give in memory of their own. Where a call is recorded, it is the
                same memory each time: what is in it holds until the same thread makes the same call again.
            into: The outputs to write to memory that is there.
            record: Whether the call becomes a CUDA graph, of which there are `MOST_GRAPHS` at most: at
                once (True), never (False), or if it is like an earlier one (None).
            meanwhile: What the host does before it waits for the device.

        Raises:
            BackendError: onnxruntime refused the inputs or failed.
            ClosedError: The engine was closed.
        """
        into = into or {}
        with self.lock:
            key = self._key(feeds, sizes, into)
            call = self.calls.get(key)
            if call is None:
                wanted = self.seen[key] > 0 if record is None else record
                captured = wanted and self.captures and len(self.calls) < MOST_GRAPHS
                taken = {
                    name: BoundTensor.empty(one, self.types[name], self.device)
                    for name, one in sizes.items()
                }
                call = self.bind(feeds, {**taken, **into}, captured=captured)
                if captured:
                    if meanwhile is not None:
                        # What is recorded is waited for at once.
                        meanwhile()
                        meanwhile = None
                    self.calls[key] = call
                else:
                    self.seen.note(key)
            else:
                for name, value in feeds.items():
                    if isinstance(value, np.ndarray) and name not in self.host:
                        call.inputs[name].write(value)
            self.repeat(call, meanwhile)
            return call.outputs

    def bind(self, feeds: Feeds, outputs: Mapping[str, BoundTensor], *, captured: bool) -> Call:
        """Bind inputs and outputs without running; arrays are copied to memory of their own.

        Args:
            feeds: Arrays, and bound tensors, by input.
            outputs: Where to write, by output; all others are left out.
            captured: Whether it becomes a CUDA graph when it is first run.

        Raises:
            BackendError: There is no memory for the inputs.
            ClosedError: The engine was closed.
        """
        if self.session is None:
            raise ClosedError(f"{self.path}: the engine is closed")
        binding = self.session.io_binding()
        inputs: dict[str, BoundTensor] = {}
        for name, value in feeds.items():
            device = "cpu" if name in self.host else self.device
            if isinstance(value, np.ndarray):
                array = np.array(value, order="C") if captured else np.ascontiguousarray(value)
                value = BoundTensor.copied(array, self.types[name], device)
            assert isinstance(value, BoundTensor)
            inputs[name] = value
            kind = TYPES[self.types[name]]
            binding.bind_input(name, device, 0, kind, list(value.sizes), value.address)
        for name, tensor in outputs.items():
            kind = TYPES[self.types[name]]
            binding.bind_output(name, self.device, 0, kind, list(tensor.sizes), tensor.address)
        options, unwaited = ort.RunOptions(), None
        if self.captures:
            number = str(next(self.numbers) if captured else OUTSIDE)
            options.add_run_config_entry("gpu_graph_id", number)
            unwaited = ort.RunOptions()
            unwaited.add_run_config_entry("gpu_graph_id", number)
            unwaited.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return Call(binding, options, unwaited, inputs, dict(outputs))

    def repeat(self, call: Call, meanwhile: Callable[[], None] | None = None) -> None:
        """Run a bound call with what is in its memory now, doing `meanwhile` before waiting for it."""
        with self.lock:
            if self.session is None:
                raise ClosedError(f"{self.path}: the engine is closed")
            options = call.options if meanwhile is None else call.unwaited or call.options
            try:
                self.session.run_with_iobinding(call.binding, options)
            except Exception as error:
                raise BackendError(f"{self.path.name}: {advice(error)}") from error
            if meanwhile is not None:
                try:
                    meanwhile()
                finally:
                    call.binding.synchronize_outputs()

    def close(self) -> None:
        """Free the session."""
        with self.lock:
            self.calls.clear()
            self.session = None

    def forget(self, tensors: Collection[BoundTensor]) -> None:
        """Let go of calls that read or write these tensors."""
        with self.lock:
            gone = {tensor.address for tensor in tensors}
            for key, call in list(self.calls.items()):
                bound = (*call.inputs.values(), *call.outputs.values())
                if any(tensor.address in gone for tensor in bound):
                    del self.calls[key]

    def _key(
        self, feeds: Feeds, sizes: Mapping[str, tuple[int, ...]], into: Mapping[str, BoundTensor]
    ) -> Any:
        """What two calls must have in common to be one CUDA graph."""
        taken: list[Any] = []
        for name, value in feeds.items():
            if isinstance(value, BoundTensor):
                taken.append((name, value.sizes, value.address))
            else:
                array = np.asarray(value)
                taken.append((name, array.shape, array.tobytes() if name in self.host else None))
        written = [(name, tensor.sizes, tensor.address) for name, tensor in into.items()]
        return threading.get_ident(), tuple(taken), tuple(sizes.items()), tuple(written)


def _placed(array: NDArray[Any], device: str) -> Any:
    """An array as an OrtValue on a device."""
    with taking(array.nbytes, device):
        return ort.OrtValue.ortvalue_from_numpy(array, device, 0)


@contextmanager
def taking(count: int, device: str) -> Iterator[None]:
    """Turn a refusal of `count` bytes into a BackendError that says how many were wanted."""
    try:
        yield
    except Exception as error:
        raise BackendError(
            f"{count / 2**20:.0f} MiB on the {device} were not to be had: {advice(error)}"
        ) from error


def advice(error: Exception) -> str:
    """An onnxruntime message in a line, with what to do where memory ran out."""
    line = first_line(error)
    if "allocate" in line.lower() or "out of memory" in line.lower():
        line += "; keep fewer visual tokens, use smaller pictures, or ask for a shorter answer"
    return line
