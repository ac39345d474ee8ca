"""TensorRT and TensorRT for RTX: engines built ahead of time, on the GPU they were built for."""

import functools
import mmap
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foveate.bundle.manifest import EngineVariant, Library, TensorSpec
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, ClosedError
from foveate.runtime.backends.cuda_graphs import CudaGraphs
from foveate.runtime.backends.trt.cuda import Block, Gpu
from foveate.runtime.backends.trt.fit import NAMES, rebuild
from foveate.runtime.backends.trt.library import Log, import_library, make_logger
from foveate.runtime.backends.trt.ranges import only_sizes, pick_profile
from foveate.runtime.backends.trt.tensor_specs import DTYPES, agrees, engine_spec
from foveate.runtime.tensors import Call, DeviceTensor, Feeds, Tensor, held, on_host

MOST_GRAPHS = 4
"""CUDA graphs kept for each engine."""


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
class Bound:
    """What TensorRT runs of a call.

    Attributes:
        profile: Its profile's number.
        key: Of its CUDA graph.
    """

    profile: int
    key: Hashable


class TensorRTEngine:
    """One engine, with an execution context for each of its profiles."""

    def __init__(self, opener: Opener, engine: Any, bundle: Bundle, variant: EngineVariant) -> None:
        """Describe the engine, hold it against the manifest and make its contexts.

        Raises:
            BackendError: It is not what the manifest says, or memory is short.
        """
        self.opener, self.gpu, self.variant = opener, opener.gpu, variant
        self.lock = opener.gpu.lock
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
        self.graphs: CudaGraphs[Any] = CudaGraphs(MOST_GRAPHS, self._destroy)

    def run(
        self,
        feeds: Feeds,
        into: Mapping[str, DeviceTensor] | None = None,
        *,
        capture: bool | None = None,
    ) -> dict[str, DeviceTensor]:
        """Enqueue a run; outputs wait when they are read.

        Args:
            feeds: Every input, in host memory or on this GPU.
            into: Outputs by name whose memory is there, of any shape; others get memory of their own.
            capture: False keeps a call whose shapes will not come again from becoming a CUDA graph.

        Raises:
            LimitError: Shapes that no profile of the engine takes.
            BackendError: TensorRT refused the inputs or failed.
            ClosedError: The engine was closed.
        """
        with self.gpu.lock:
            self._check_open()
            shapes = {spec.name: tuple(feeds[spec.name].shape) for spec in self.inputs}
            values = {name: self._hold(name, feeds[name]) for name in self.hosted}
            profile = pick_profile(self.variant, shapes, values)
            context = self.contexts[profile]
            inputs = {
                name: self._on_device(name, feeds[name])
                for name in shapes
                if name not in self.hosted
            }
            self._set_shapes(context, shapes)
            outputs = self._outputs(context, into or {})
            addresses = self._set_addresses(context, inputs | outputs)
            key = (profile, *shapes.values(), *values.values(), *addresses.values())
            self._launch(key, context, capture)
            if self.hosted:
                self.gpu.synchronize()
            return outputs

    def bind(self, feeds: Feeds, into: Mapping[str, DeviceTensor]) -> Call:
        """Fix where every input and output lies, without running; `repeat` runs the call.

        Args:
            feeds: Every input; arrays are copied to this GPU.
            into: Outputs by name whose memory is there, which may be that of an input; others get
                their own.

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
            inputs = {
                spec.name: self._on_device(spec.name, feeds[spec.name]) for spec in self.inputs
            }
            shapes = {name: tensor.shape for name, tensor in inputs.items()}
            profile = pick_profile(self.variant, shapes, {})
            context = self.contexts[profile]
            self._set_shapes(context, shapes)
            outputs = self._outputs(context, into)
            addresses = (tensor.address for tensor in (inputs | outputs).values())
            key = (profile, *shapes.values(), *addresses)
            return Call(inputs, outputs, Bound(profile, key))

    def repeat(self, call: Call) -> None:
        """Enqueue a bound call on what its memory holds now, from the third time on as one CUDA graph.

        Raises:
            BackendError: TensorRT failed.
            ClosedError: The engine was closed.
        """
        with self.gpu.lock:
            self._check_open()
            bound: Bound = call.handle
            context = self.contexts[bound.profile]
            graph = self.graphs.get(bound.key)
            if graph is not None:
                self.gpu.launch(graph)
                return
            self._set_shapes(context, {name: one.shape for name, one in call.inputs.items()})
            self._set_addresses(context, call.inputs | call.outputs)
            self._launch(bound.key, context)

    def forget(self, tensors: Collection[DeviceTensor]) -> None:
        """Let go of all CUDA graphs: which of them use these tensors is not known."""
        with self.gpu.lock:
            self.graphs.clear()

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """Memory on this GPU for a tensor of zeros.

        Raises:
            BackendError: There is no memory for it.
        """
        tensor = self.gpu.empty(shape, dtype)
        self.gpu.clear(tensor)
        return tensor

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

    def _launch(self, key: Hashable, context: Any, capture: bool | None = None) -> None:
        """Do what a context was set up for: by its CUDA graph, or else now, capturing it for the next time."""
        graph = self.graphs.get(key)
        if graph is not None:
            self.gpu.launch(graph)
            return
        work = functools.partial(self._enqueue, context)
        work()
        if self.graphs.wants(key, capture):
            try:
                self.graphs.put(key, self.gpu.capture(work))
            except BackendError as error:
                self.graphs.refuse(str(error))

    def _enqueue(self, context: Any) -> None:
        """Put the engine's work on the stream."""
        if not context.execute_async_v3(self.gpu.handle):
            raise BackendError(f"{self._title()} failed: {self.opener.log.take()}")

    def _destroy(self, graph: Any) -> None:
        """Free a CUDA graph, when nothing on the GPU uses it any more."""
        self.gpu.synchronize()
        self.gpu.destroy(graph)

    def _on_device(self, name: str, feed: Tensor) -> DeviceTensor:
        """An input in device memory, of the engine's type."""
        wanted = self.kinds[name]
        if isinstance(feed, DeviceTensor) and isinstance(feed.memory, Block):
            if held(feed.dtype) == held(wanted):
                return feed
            raise BackendError(
                f"{self._title()}: {name!r} is {feed.dtype} on the GPU and {wanted} in the engine"
            )
        array = on_host(feed)
        if array.dtype != held(wanted):
            if array.dtype != np.int64 or wanted != "int32":
                raise BackendError(
                    f"{self._title()}: {name!r} is {array.dtype} and {wanted} in the engine"
                )
            array = array.astype(np.int32)
        return self.gpu.upload(array, wanted)

    def _outputs(self, context: Any, into: Mapping[str, DeviceTensor]) -> dict[str, DeviceTensor]:
        """Memory for every output, of the shape that the inputs give it."""
        return {
            spec.name: self._output(context, spec, into.get(spec.name)) for spec in self.outputs
        }

    def _output(self, context: Any, spec: TensorSpec, there: DeviceTensor | None) -> DeviceTensor:
        """Memory for an output."""
        shape = tuple(context.get_tensor_shape(spec.name))
        if any(size < 0 for size in shape):
            raise BackendError(
                f"{self._title()}: the shape of {spec.name!r} is not known before it is run"
            )
        kind = self.kinds[spec.name]
        block = None
        if there is not None:
            assert isinstance(there.memory, Block)
            block = there.memory
        tensor = self.gpu.empty(shape, kind, block)
        return tensor if kind == spec.dtype else replace(tensor, reads_as=spec.dtype)

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
