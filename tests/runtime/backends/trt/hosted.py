"""CUDA and TensorRT acted out in host memory: the runtime's own code over onnxruntime, without a GPU.

What an engine is asked for is done at the very addresses it was given, now or when a captured graph is
launched. Memory begins as NaN, so that what is read before it is written shows.
"""

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from foveate import Pipeline
from foveate.bundle.manifest import Decoder, EngineVariant, GraphSpec
from foveate.bundle.reader import Bundle
from foveate.export.tensorrt.axes import axis_size
from foveate.export.tensorrt.static import static_graph
from foveate.export.tensorrt.targets import Ranges
from foveate.runtime.backends.trt.backend import TensorRTBackend
from foveate.runtime.backends.trt.cuda import Gpu
from foveate.runtime.backends.trt.engine import TensorRTEngine
from foveate.runtime.backends.trt.library import Log
from foveate.runtime.backends.trt.tensor_specs import DTYPES, WRITE_INDICES, engine_spec
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.load import read_family, read_tokenizer
from tests.runtime.backends.trt.engines import variants

NAMES = {dtype: name for name, dtype in DTYPES.items()}
TRT = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
    TensorLocation=SimpleNamespace(HOST="host", DEVICE="device"),
    DataType=SimpleNamespace(__members__=dict.fromkeys(DTYPES)),
)


class Cuda:
    """What the runtime asks of CUDA.

    Attributes:
        graphs: The work of each captured graph.
        launches: The graph of each launch, in order.
        copies: The bytes of each copy to the device, in order.
    """

    cudaStreamNonBlocking = cudaEventDisableTiming = 0
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=0)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: list[list[Callable[[], None]]] = []
        self.launches: list[int] = []
        self.copies: list[int] = []

    def __getattr__(self, name: str) -> Any:
        """Calls that have nothing to do here, and give nothing."""
        if name.startswith("cuda"):
            return lambda *arguments: (0,)
        raise AttributeError(name)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return 0, 1

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return 0, 1

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        array = np.full(size, 255, np.uint8)
        self.memory[array.ctypes.data] = array
        return 0, array.ctypes.data

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[int, int]:
        return self.cudaMalloc(size)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> Any:
        if kind == 1:
            self.copies.append(size)
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[int]:
        ctypes.memset(address, value, size)
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.capturing = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int]:
        assert self.capturing is not None
        self.graphs.append(self.capturing)
        self.capturing = None
        return 0, len(self.graphs) - 1

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        return 0, graph

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:
        self.launches.append(graph)
        for work in self.graphs[graph]:
            work()
        return (0,)


def open_graph(graph: bytes, folder: Path) -> onnxruntime.InferenceSession:
    """A graph in onnxruntime whose weights lie in `folder`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    return onnxruntime.InferenceSession(graph, options)


class HostEngine:
    """A serialized engine as TensorRT presents it, which onnxruntime runs in its place."""

    def __init__(self, cuda: Cuda, graph: bytes, folder: Path, spec: GraphSpec, count: int) -> None:
        """Open a graph whose weights lie in `folder`, with `count` profiles."""
        self.session = open_graph(graph, folder)
        self.cuda, self.num_optimization_profiles = cuda, count
        self.inputs = {one.name: one for one in spec.inputs}
        self.outputs = {one.name: one for one in spec.outputs}
        self.tensors = {**self.inputs, **self.outputs}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, place: int) -> str:
        return list(self.tensors)[place]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=NAMES[self.tensors[name].dtype])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(one, str) else one for one in self.tensors[name].shape)

    def get_tensor_location(self, name: str) -> str:
        return "host" if name == "keep" else "device"

    def create_execution_context(self) -> "HostContext":
        return HostContext(self)


class HostContext:
    """An execution context: shapes and addresses are set, and then it is enqueued."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, place: int, stream: int) -> bool:
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """An output's shape: its axes are those of the inputs, or as long as `keep` says."""
        sizes: dict[str, int] = {}
        for one in self.engine.inputs.values():
            named = zip(one.shape, self.shapes[one.name], strict=True)
            sizes |= {axis: size for axis, size in named if isinstance(axis, str)}
        if "keep" in self.engine.inputs:
            kept = str(self.engine.outputs["kept_indices"].shape[0])
            sizes[kept] = ctypes.c_int64.from_address(self.addresses["keep"]).value
        return tuple(axis_size(axis, sizes) for axis in self.engine.tensors[name].shape)

    def execute_async_v3(self, stream: int) -> bool:
        """Do the work, or have it captured with the shapes and addresses that are set now.

        Only a cache that is written in place lies where it is read: TensorRT may write an output while it
        still reads an input, which onnxruntime does not.
        """
        if WRITE_INDICES not in self.engine.inputs:
            read, written = (
                {self.addresses[name] for name in names}
                for names in (self.engine.inputs, self.engine.outputs)
            )
            assert not read & written
        binding = self.engine.session.io_binding()
        for name, one in self.engine.tensors.items():
            given = name in self.engine.inputs
            bind = binding.bind_input if given else binding.bind_output
            shape = self.shapes[name] if given else self.get_tensor_shape(name)
            bind(name, "cpu", 0, np.dtype(one.dtype), list(shape), self.addresses[name])
        if self.engine.cuda.capturing is not None:
            self.engine.cuda.capturing.append(
                lambda: self.engine.session.run_with_iobinding(binding)
            )
        else:
            self.engine.session.run_with_iobinding(binding)
        return True


def host_engine(
    bundle: Bundle, gpu: Gpu, variant: EngineVariant, graph: bytes | None = None
) -> TensorRTEngine:
    """The runtime's engine over a bundle's graph, or over another in its place."""
    path = bundle.file(variant.role)
    opener: Any = SimpleNamespace(gpu=gpu, module=TRT, log=Log())
    engine = HostEngine(
        gpu.cuda, graph or path.read_bytes(), path.parent,
        engine_spec(bundle.graph(variant.role), variant), len(variant.profiles),
    )  # fmt: skip
    return TensorRTEngine(opener, engine, bundle, variant)


def host_engines(
    bundle: Bundle, variants: list[EngineVariant], graphs: Mapping[str, bytes]
) -> dict[str, TensorRTEngine]:
    """A target's engines on one GPU that there is not."""
    gpu = Gpu(Cuda())
    return {one.role: host_engine(bundle, gpu, one, graphs.get(one.role)) for one in variants}


RANGES = Ranges(
    visual=(96, 512), pictures=(1, 4), text=(40, 256), keep=(32, 512), prompt=(96, 384), cache=(128, 384)
)  # fmt: skip


def host_backend(
    bundle: Bundle, decoder: Decoder, profiles: int = 2, ranges: Ranges = RANGES
) -> TensorRTBackend:
    """A bundle's backend on a GPU that there is not, with a decoder of either kind."""
    described = variants(bundle, "h100", decoder=decoder, ranges=ranges, profiles=profiles)
    graphs = {}
    if decoder == "static":
        graphs["decoder"] = static_graph(bundle.file("decoder"), ranges.cache[1])
    engines = host_engines(bundle, described, graphs)
    return TensorRTBackend(bundle, engines["vision"].gpu, engines, EmbeddingTable(bundle))


def host_pipeline(
    bundle: Bundle, decoder: Decoder, profiles: int = 2, ranges: Ranges = RANGES
) -> Pipeline:
    """A bundle's pipeline on a GPU that there is not."""
    backend, tokenizer = host_backend(bundle, decoder, profiles, ranges), read_tokenizer(bundle)
    family = read_family(bundle, tokenizer)
    return Pipeline(bundle, backend, backend.decoder(), family, tokenizer)
