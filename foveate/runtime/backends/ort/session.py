"""onnxruntime: the backend that runs everywhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.bundle.manifest import Precision, TensorSpec
from foveate.errors import BackendError, ClosedError
from foveate.runtime.backends.ort.library import ort, preload
from foveate.runtime.backends.ort.memory import OrtMemory, advice, first_line
from foveate.runtime.tensors import DeviceTensor, Feeds, held

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
EXACT = {"cpu": {}, "cuda": {"use_tf32": "0"}}
"""What a device's provider is told so that products of float32 are of float32."""
HARMFUL: dict[str, list[str]] = {"int8": ["MatMulAddFusion", "CommonSubexpressionElimination"]}
"""Optimizers of onnxruntime that keep it from fusing quantized products, by precision."""


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """How sessions are opened.

    Attributes:
        device: "cpu" or "cuda".
        threads: Threads within an operator; 0 leaves it to onnxruntime.
        frugal: Leave weights in the mapped file instead of repacking them: slower, half the memory.
        precision: The graph's, which decides what onnxruntime may fuse.
        arena: On a CPU, take memory for a run in large pieces and give them back after it. The system's
            own allocator leaves up to three times as much in holes where large sizes alternate.
    """

    device: str = "cpu"
    threads: int = 0
    frugal: bool = False
    precision: Precision = "fp32"
    arena: bool = False


def resolve_device(device: str) -> str:
    """Turn "auto" into the best device onnxruntime has here, and refuse one that it lacks.

    Raises:
        BackendError: Unknown device, or its provider is not in the installed onnxruntime.
    """
    available = ort.get_available_providers()
    if device == "auto":
        device = "cuda" if PROVIDERS["cuda"] in available else "cpu"
    if device not in PROVIDERS:
        raise BackendError(
            f"device {device!r} is unknown; choose from auto, {', '.join(PROVIDERS)}"
        )
    if PROVIDERS[device] not in available:
        raise BackendError(
            f"device {device!r} needs onnxruntime's {PROVIDERS[device]}, and this onnxruntime has "
            f"{', '.join(available)}; pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
        )
    if device == "cuda":
        preload()
    return device


class OnnxEngine:
    """One onnxruntime session; `run` may be called from several threads at once."""

    def __init__(self, path: Path, options: OnnxOptions) -> None:
        """Open the graph at `path` on exactly the device asked for.

        Raises:
            BackendError: Unreadable graph, an operator the device lacks, or another provider was given.
        """
        session = open_session(path, options)
        self.path = path
        self.device = options.device
        self.inputs = tuple(spec(node) for node in session.get_inputs())
        self.outputs = tuple(spec(node) for node in session.get_outputs())
        self.session: ort.InferenceSession | None = session
        self.run_options: ort.RunOptions | None = None
        if options.arena and options.device == "cpu":
            self.run_options = ort.RunOptions()
            self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, feeds: Feeds) -> dict[str, DeviceTensor]:
        """Run once; outputs are in memory of their own on the engine's device.

        Raises:
            BackendError: onnxruntime refused the inputs or failed.
            ClosedError: The engine was closed.
        """
        session = self.session
        if session is None:
            raise ClosedError(f"{self.path}: the engine is closed")
        # onnxruntime borrows a host array's memory: the arrays must outlive the run.
        arrays = {
            name: np.ascontiguousarray(value)
            for name, value in feeds.items()
            if isinstance(value, np.ndarray)
        }
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(arrays[name], self.device, 0)
            if name in arrays
            else whole_value(value)
            for name, value in feeds.items()
        }
        try:
            outputs = session.run_with_ort_values(
                [one.name for one in self.outputs], values, self.run_options
            )
        except Exception as error:
            raise BackendError(f"{self.path.name}: {advice(error)}") from error
        return {
            one.name: DeviceTensor(
                OrtMemory(value, self.device, held(one.dtype).itemsize),
                tuple(value.shape()),
                one.dtype,
            )
            for one, value in zip(self.outputs, outputs, strict=True)
        }

    def close(self) -> None:
        """Free the session."""
        self.session = None


def open_session(path: Path, options: OnnxOptions, settings: dict[str, str] | None = None) -> Any:
    """A session on exactly the device asked for, its provider set up with `settings` beside `EXACT`.

    Raises:
        BackendError: Unreadable graph, an operator the device lacks, or another provider was given.
    """
    provider = PROVIDERS[options.device]
    try:
        session = ort.InferenceSession(
            str(path),
            sess_options=session_options(options),
            providers=[(provider, {**EXACT[options.device], **(settings or {})})],
            disabled_optimizers=HARMFUL.get(options.precision, []),
        )
    except Exception as error:
        raise BackendError(f"{path}: onnxruntime cannot open it: {first_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"{path}: {provider} was asked for and onnxruntime gave {session.get_providers()[0]}; "
            "see `foveate doctor`"
        )
    return session


def session_options(options: OnnxOptions) -> Any:
    """Build onnxruntime's session options: quiet, and with no memory kept for shapes long gone."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = options.threads
    # A pool that spins after its run takes the cores from the next graph's pool.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.enable_mem_pattern = False
    if options.device == "cpu":
        settings.enable_cpu_mem_arena = options.arena
    if options.frugal:
        settings.add_session_config_entry("session.disable_prepacking", "1")
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if options.precision == "int8":
        # Without it the products of some CPUs saturate at 16 bits.
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if options.precision == "fp8":
        # onnxruntime would fuse float8 into operators that cannot take it.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return settings


def spec(node: Any) -> TensorSpec:
    """Describe one input or output the way the manifest does."""
    shape = [size if isinstance(size, int) else str(size) for size in node.shape]
    return TensorSpec(name=node.name, dtype=DTYPES.get(node.type, node.type), shape=shape)


def whole_value(tensor: Any) -> Any:
    """The OrtValue of a tensor that is all of its memory."""
    memory = tensor.memory
    assert isinstance(memory, OrtMemory) and tensor.shape == tuple(memory.value.shape())
    return memory.value
