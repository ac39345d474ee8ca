"""TensorRT and TensorRT for RTX: engines built ahead of time, on the GPU they were built for."""

import functools
import importlib
import mmap
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.bundle.manifest import EngineVariant, Library, TensorSpec
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, ClosedError, MissingDependencyError
from foveate.runtime.backends.trt.cuda import Block, DeviceTensor, Gpu
from foveate.runtime.backends.trt.cuda_graphs import Graphs
from foveate.runtime.backends.trt.fit import NAMES, rebuild
from foveate.runtime.backends.trt.ranges import only_sizes, pick_profile
from foveate.runtime.backends.trt.tensor_specs import DTYPES, agrees, engine_spec
from foveate.runtime.tensors import Feeds, Tensor, Value, held, on_host

EXTRAS: dict[Library, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
WARNING = 2


def import_library(library: Library) -> Any:
    """TensorRT's module.

    Raises:
        MissingDependencyError: It is not installed, or does not load.
    """
    try:
        module = importlib.import_module(library)
        str(module.__version__)
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise MissingDependencyError(
            f"{NAMES[library]} cannot be imported ({error}): pip install "
            f"'foveate[{EXTRAS[library]}]'"
            + ("; on a Jetson it comes with JetPack" if library == "tensorrt" else "")
        ) from error
    return module


def installed_version(library: Library) -> str:
    """The version of an installed library; see `choose.Versions`."""
    return str(import_library(library).__version__)


@dataclass(slots=True)
class Log:
    """The last warnings and errors that TensorRT wrote."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=5))

    def take(self) -> str:
        """All of them in a line, which are forgotten then."""
        said = " | ".join(self.lines)
        self.lines.clear()
        return said or "TensorRT gave no reason"


class Opener:
    """TensorRT's runtime, which makes engines of files; keep it as long as they live."""

    def __init__(self, library: Library, gpu: Gpu) -> None:
        """Start TensorRT.

        Raises:
            MissingDependencyError: It is not installed.
            BackendError: It does not start.
        """
        self.library, self.gpu, self.log = library, gpu, Log()
        self.module = import_library(library)
        self.logger = make_logger(self.module, self.log)
        try:
            self.runtime = self.module.Runtime(self.logger)
        except (TypeError, RuntimeError) as error:
            raise BackendError(
                f"{self.title} does not start: {self.log.take()} ({error}). See: foveate doctor"
            ) from error

    @property
    def title(self) -> str:
        """Its name and version."""
        return f"{NAMES[self.library]} {self.module.__version__}"

    def open(self, bundle: Bundle, variant: EngineVariant) -> "TensorRTEngine":
        """Load an engine that fits this machine; see `fit.fits`.

        Raises:
            BackendError: TensorRT does not take it, or it is not what the manifest says.
        """
        path = bundle.file(variant.file)
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            engine = self.runtime.deserialize_cuda_engine(memoryview(data))
        if engine is None:
            raise BackendError(
                f"{path}: {self.title} cannot load it: {self.log.take()}. Build it again: "
                f"{rebuild(bundle, variant.target)}"
            )
        return TensorRTEngine(self, engine, bundle, variant)


@dataclass(frozen=True, slots=True)
class Call:
    """Inputs and outputs at addresses that stay, ready to run again and again.

    Attributes:
        place: The profile's number.
        inputs: Tensors by input.
        outputs: Tensors by output.
        key: What a CUDA graph of it must have been recorded with.
    """

    place: int
    inputs: dict[str, DeviceTensor]
    outputs: dict[str, DeviceTensor]
    key: Hashable


class TensorRTEngine:
    """One engine, with an execution context for each of its profiles."""

    def __init__(self, opener: Opener, engine: Any, bundle: Bundle, variant: EngineVariant) -> None:
        """Describe the engine, hold it against the manifest and make its contexts.

        Raises:
            BackendError: It is not what the manifest says, or memory is short.
        """
        self.opener, self.gpu, self.variant = opener, opener.gpu, variant
        self.engine: Any = engine
        trt = opener.module
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        inputs = {name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self.kinds = {name: DTYPES[engine.get_tensor_dtype(name).name] for name in names}
        self.hosted = {
            name: np.zeros(tuple(engine.get_tensor_shape(name)), dtype=held(self.kinds[name]))
            for name in sorted(inputs)
            if engine.get_tensor_location(name) == trt.TensorLocation.HOST
        }
        spec = engine_spec(bundle.graph(variant.role), variant)
        narrow = "INT64" not in trt.DataType.__members__
        for promised, found in (
            (spec.inputs, inputs),
            (spec.outputs, set(names) - inputs),
        ):
            self._check(bundle, promised, found, narrow)
        self.inputs, self.outputs = tuple(spec.inputs), tuple(spec.outputs)
        if engine.num_optimization_profiles != len(variant.profiles):
            raise BackendError(
                f"{self._title()} has {engine.num_optimization_profiles} profiles and "
                f"{len(variant.profiles)} in the manifest. {self._again(bundle)}"
            )
        self.contexts = [self._context(place) for place in range(len(variant.profiles))]
        self.graphs = Graphs(self.gpu)

    def run(
        self, feeds: Feeds, into: Mapping[str, Block] | None = None, *, repeats: bool = True
    ) -> dict[str, Value]:
        """Run once; outputs stay on the GPU.

        Args:
            feeds: Every input, in host memory or on this GPU.
            into: Memory for outputs by name; others get memory of their own.
            repeats: Whether the same shapes are likely to come again: CUDA graphs are made of them.

        Raises:
            LimitError: Shapes that no profile of the engine takes.
            BackendError: TensorRT refused the inputs or failed.
            ClosedError: The engine was closed.
        """
        with self.gpu.lock:
            self._check_open()
            shapes = {spec.name: tuple(_shape(feeds[spec.name])) for spec in self.inputs}
            values = {name: self._hold(name, feeds[name]) for name in self.hosted}
            place = pick_profile(self.variant, shapes, values)
            context = self.contexts[place]
            placed = {
                name: self._placed(name, feeds[name]) for name in shapes if name not in self.hosted
            }
            self._set_shapes(context, shapes)
            outputs = {
                spec.name: self._output(context, spec, (into or {}).get(spec.name))
                for spec in self.outputs
            }
            addresses = self._set_addresses(context, placed | outputs)
            work = functools.partial(self._enqueue, context)
            if repeats:
                key = (place, *shapes.values(), *values.values(), *addresses.values())
                self.graphs.run(key, work)
            else:
                work()
            if self.hosted:
                self.gpu.synchronize()
            return dict(outputs)

    def bind(self, feeds: Mapping[str, DeviceTensor], into: Mapping[str, Block]) -> Call:
        """Fix where every input and output lies, without running; `repeat` runs the call.

        Args:
            feeds: Every input, on this GPU.
            into: Memory for outputs by name, which may be that of an input; others get their own.

        Raises:
            LimitError: Shapes that no profile of the engine takes.
            BackendError: TensorRT refused the inputs, or reads some of them in host memory.
            ClosedError: The engine was closed.
        """
        with self.gpu.lock:
            self._check_open()
            self._must(
                not self.hosted, f"to be bound: {', '.join(self.hosted)} must change with it"
            )
            inputs = {spec.name: self._placed(spec.name, feeds[spec.name]) for spec in self.inputs}
            shapes = {name: tensor.sizes for name, tensor in inputs.items()}
            place = pick_profile(self.variant, shapes, {})
            context = self.contexts[place]
            self._set_shapes(context, shapes)
            outputs = {
                spec.name: self._output(context, spec, into.get(spec.name)) for spec in self.outputs
            }
            addresses = (tensor.address for tensor in (inputs | outputs).values())
            return Call(place, inputs, outputs, (place, *shapes.values(), *addresses))

    def repeat(self, call: Call) -> None:
        """Run a bound call on what its memory holds now, from the third time on as one CUDA graph.

        Raises:
            BackendError: TensorRT failed.
            ClosedError: The engine was closed.
        """
        with self.gpu.lock:
            self._check_open()
            if self.graphs.launch(call.key):
                return
            context = self.contexts[call.place]
            self._set_shapes(context, {name: one.sizes for name, one in call.inputs.items()})
            self._set_addresses(context, call.inputs | call.outputs)
            self.graphs.run(call.key, functools.partial(self._enqueue, context))

    def dtype(self, name: str) -> np.dtype[Any]:
        """What holds an input or output in memory."""
        return held(self.kinds[name])

    def close(self) -> None:
        """Free the engine."""
        with self.gpu.lock:
            if self.engine is not None and not self.gpu.closed:
                self.gpu.synchronize()
                self.graphs.clear()
            self.contexts, self.engine = [], None

    def _check(
        self, bundle: Bundle, promised: list[TensorSpec], found: set[str], narrow: bool
    ) -> None:
        """BackendError where the engine's inputs or outputs are not what the manifest says."""
        wanted = {tensor.name: tensor for tensor in promised}
        for name in sorted(wanted.keys() ^ found):
            raise BackendError(
                f"{self._title()} {'lacks' if name in wanted else 'has'} the tensor {name!r}, unlike "
                f"the manifest. {self._again(bundle)}"
            )
        for name, promise in wanted.items():
            shape, dtype = list(self.engine.get_tensor_shape(name)), self.kinds[name]
            only = only_sizes(self.variant, name)
            if not agrees(promise, dtype, shape, only=only, narrow=narrow):
                raise BackendError(
                    f"{self._title()}: {name!r} is {dtype} {shape} in the engine and {promise.dtype} "
                    f"{promise.shape} in the manifest. {self._again(bundle)}"
                )

    def _context(self, place: int) -> Any:
        """An execution context of a profile."""
        context = self.engine.create_execution_context()
        if context is None:
            free, total = self.gpu.memory()
            raise BackendError(
                f"{self._title()}: no memory to run it: {self.opener.log.take()} "
                f"({free >> 20} of {total >> 20} MiB are free); build engines with smaller ranges or "
                "a smaller workspace_mib (--targets)"
            )
        if place:
            done = context.set_optimization_profile_async(place, self.gpu.handle)
            self._must(done, f"its profile {place}")
            self.gpu.synchronize()
        return context

    def _hold(self, name: str, feed: Tensor) -> tuple[int, ...]:
        """Put an input where TensorRT reads it on the host, always the same place; what it holds."""
        array = on_host(feed)
        self.hosted[name].reshape(-1)[:] = array.reshape(-1)
        return tuple(int(number) for number in array.reshape(-1))

    def _set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Tell TensorRT the shapes of all inputs, and the values of those that are sizes themselves."""
        for name, shape in shapes.items():
            self._must(context.set_input_shape(name, shape), f"the shape {list(shape)} of {name!r}")
        for name, array in self.hosted.items():
            self._must(context.set_tensor_address(name, array.ctypes.data), repr(name))
        try:
            lacking = context.infer_shapes()
        except RuntimeError as error:
            raise BackendError(f"{self._title()}: {self.opener.log.take()} ({error})") from error
        self._must(not lacking, f"the inputs: it lacks {', '.join(lacking)}")

    def _set_addresses(self, context: Any, tensors: Mapping[str, DeviceTensor]) -> dict[str, int]:
        """Tell TensorRT where all that lies on the GPU lies."""
        addresses = {name: tensor.address for name, tensor in tensors.items()}
        for name, address in addresses.items():
            self._must(context.set_tensor_address(name, address), repr(name))
        return addresses

    def _enqueue(self, context: Any) -> None:
        """Put the engine's work on the stream."""
        if not context.execute_async_v3(self.gpu.handle):
            raise BackendError(f"{self._title()} failed: {self.opener.log.take()}")

    def _placed(self, name: str, feed: Tensor) -> DeviceTensor:
        """An input in device memory, of the engine's type."""
        wanted = held(self.kinds[name])
        if isinstance(feed, DeviceTensor):
            if feed.dtype == wanted:
                return feed
            raise BackendError(
                f"{self._title()}: {name!r} is {feed.dtype} on the GPU and {wanted} in the engine"
            )
        array = on_host(feed)
        if array.dtype != wanted:
            if array.dtype != np.int64 or wanted != np.int32:
                raise BackendError(
                    f"{self._title()}: {name!r} is {array.dtype} and {wanted} in the engine"
                )
            array = array.astype(np.int32)
        return self.gpu.upload(array)

    def _output(self, context: Any, spec: TensorSpec, block: Block | None) -> DeviceTensor:
        """Memory for an output, of the shape that the inputs give it."""
        sizes = tuple(context.get_tensor_shape(spec.name))
        if any(size < 0 for size in sizes):
            raise BackendError(
                f"{self._title()}: the shape of {spec.name!r} is not known before it is run"
            )
        kind = self.kinds[spec.name]
        tensor = self.gpu.empty(sizes, held(kind), block)
        if kind == spec.dtype:
            return tensor
        return DeviceTensor(tensor.block, sizes, tensor.dtype, held(spec.dtype))

    def _check_open(self) -> None:
        """ClosedError after `close`."""
        if self.engine is None:
            raise ClosedError(f"{self._title()} is closed; load the bundle again")

    def _must(self, done: Any, what: str) -> None:
        """BackendError where TensorRT refused something."""
        if not done:
            raise BackendError(f"{self._title()} refuses {what}: {self.opener.log.take()}")

    def _again(self, bundle: Bundle) -> str:
        """What to do about an engine that is not right."""
        return f"Build it again: {rebuild(bundle, self.variant.target)}"

    def _title(self) -> str:
        """The engine in words."""
        return f"the engine of {self.variant.role} for {self.variant.target}"


def make_logger(trt: Any, log: Log) -> Any:
    """A logger for TensorRT that keeps its last warnings and errors."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """TensorRT's log lines."""

        def log(self, severity: Any, text: str) -> None:
            """Take a line."""
            if int(severity) <= WARNING:
                log.lines.append(text)

    return Logger()


def _shape(feed: Tensor) -> list[int]:
    """The shape of an input."""
    return list(feed.shape) if isinstance(feed, np.ndarray) else feed.shape()
