"""One GPU for TensorRT: a stream, memory that is used again, copies to and from the host, CUDA graphs."""

import ctypes
import heapq
import importlib
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import BackendError, ClosedError, MissingDependencyError
from foveate.runtime.tensors import DeviceTensor, held

MODULES = ("cuda.bindings.runtime", "cuda.cudart")
"""Where cuda-python keeps CUDA's runtime: since version 12.6, and before."""
MIB = 1024 * 1024
SMALLEST = 512
LOWER = "lower --keep, use smaller pictures, or build engines with smaller ranges (--targets)"


def load_cuda() -> Any:
    """CUDA's runtime as cuda-bindings has it.

    Raises:
        MissingDependencyError: It is not installed.
    """
    for name in MODULES:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            cause = error
    raise MissingDependencyError(
        f"running TensorRT engines needs cuda-bindings, which cannot be imported ({cause}): "
        "pip install 'foveate[tensorrt]', or foveate[rtx] for TensorRT for RTX"
    ) from cause


def check(cuda: Any, answer: tuple[Any, ...], what: str) -> Any:
    """What a CUDA call gave beside its status: nothing, a value or several.

    Raises:
        BackendError: The call failed; with CUDA's name for it.
    """
    status, *values = answer
    if int(status) != 0:
        raise BackendError(f"{what} failed: {error_name(cuda, status)}. See: foveate doctor")
    return values[0] if len(values) == 1 else tuple(values)


def error_name(cuda: Any, status: Any) -> str:
    """CUDA's name for a status."""
    _, name = cuda.cudaGetErrorName(status)
    return name.decode() if isinstance(name, bytes) else str(name)


def block_size(size: int) -> int:
    """What is allocated for `size` bytes: the next of 512, 768, 1024, 1536, 2048 … bytes."""
    power = max(SMALLEST, 1 << max(0, math.ceil(size) - 1).bit_length())
    return power * 3 // 4 if power > SMALLEST and size <= power * 3 // 4 else power


class Block:
    """Device memory, see `Memory`; it goes back to its GPU when nothing refers to it any more."""

    __slots__ = ("address", "gpu", "nbytes")

    device = "cuda"

    def __init__(self, gpu: "Gpu", address: int, nbytes: int) -> None:
        """Own `nbytes` bytes at `address`."""
        self.gpu, self.address, self.nbytes = gpu, address, nbytes

    def __del__(self) -> None:
        """Give the memory back."""
        heapq.heappush(self.gpu.idle.setdefault(self.nbytes, []), self.address)

    def read(self, begin: int, nbytes: int) -> NDArray[np.uint8]:
        """Copy to host memory, when all work on the GPU is done."""
        return self.gpu.download(self.address + begin, nbytes)

    def write(self, begin: int, array: NDArray[Any]) -> None:
        """Copy an array's bytes, without waiting for it."""
        self.gpu.write(self.address + begin, array)

    def wait(self) -> None:
        """Wait for all work on the GPU."""
        with self.gpu.lock:
            self.gpu.check_open()
            self.gpu.synchronize()


@dataclass(slots=True)
class Staging:
    """Pinned host memory, and the event after which it may be used again."""

    array: NDArray[np.uint8]
    address: int
    event: Any


class Gpu:
    """The first GPU that CUDA sees, with one stream that all work goes through in order.

    Memory is asked of CUDA once and used again, the lowest address first: so the same request finds
    the same addresses, as CUDA graphs need. Whoever puts work on the stream holds `lock`.

    Attributes:
        lock: Held by one thread at a time.
        stream: The stream.
        idle: Memory that nobody uses, by size.
    """

    def __init__(self, cuda: Any) -> None:
        """Open it.

        Raises:
            BackendError: There is none, or its driver is too old.
        """
        self.cuda = cuda
        self.lock = threading.RLock()
        self.idle: dict[int, list[int]] = {}
        self.closed = False
        self._owned: list[int] = []
        self._staged: deque[Staging] = deque()
        (status,) = cuda.cudaSetDevice(0)
        if int(status) != 0:
            raise BackendError(
                f"the GPU cannot be opened: {error_name(cuda, status)}. See: foveate doctor; a driver "
                "of CUDA 12 needs pip install 'cuda-bindings<13'"
            )
        flags = cuda.cudaStreamNonBlocking
        self.stream = self._check(cuda.cudaStreamCreateWithFlags(flags), "making a CUDA stream")

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self.stream)

    def memory(self) -> tuple[int, int]:
        """Free bytes and all bytes."""
        free, total = self._check(self.cuda.cudaMemGetInfo(), "asking for free memory")
        return int(free), int(total)

    def block(self, size: int) -> Block:
        """Memory for `size` bytes, never none.

        Raises:
            BackendError: There is not enough; says how much there is and what to lower.
        """
        with self.lock:
            self.check_open()
            rounded = block_size(size)
            waiting = self.idle.get(rounded)
            if waiting:
                return Block(self, heapq.heappop(waiting), rounded)
            return self._allocated(rounded)

    def _allocated(self, rounded: int) -> Block:
        """Memory fresh from CUDA; idle memory is given back first where there is too little."""
        status, address = self.cuda.cudaMalloc(rounded)
        if int(status) != 0:
            self.cuda.cudaGetLastError()
            self.trim()
            status, address = self.cuda.cudaMalloc(rounded)
        if int(status) != 0:
            self.cuda.cudaGetLastError()
            raise BackendError(self.shortage(rounded, error_name(self.cuda, status)))
        self._owned.append(int(address))
        return Block(self, int(address), rounded)

    def shortage(self, wanted: int, name: str) -> str:
        """What to say where memory is short."""
        free, total = self.memory()
        return (
            f"{name}: {wanted / MIB:.0f} MiB of GPU memory were wanted, and {free / MIB:.0f} of "
            f"{total / MIB:.0f} MiB are free; {LOWER}"
        )

    def trim(self) -> None:
        """Give idle memory back to CUDA, when all that was asked of the GPU is done."""
        self.synchronize()
        for addresses in self.idle.values():
            while addresses:
                address = addresses.pop()
                self._owned.remove(address)
                self.cuda.cudaFree(address)

    def empty(self, shape: tuple[int, ...], dtype: str, block: Block | None = None) -> DeviceTensor:
        """A tensor with any values in it, in `block` if that is given.

        Raises:
            BackendError: There is no memory for it, or the block is too small.
        """
        wanted = math.prod(shape) * held(dtype).itemsize
        if block is not None and wanted > block.nbytes:
            raise BackendError(f"{wanted} bytes do not fit into memory of {block.nbytes} bytes")
        return DeviceTensor(block or self.block(wanted), shape, dtype)

    def upload(self, array: NDArray[Any], dtype: str) -> DeviceTensor:
        """Copy an array to the device, without waiting for it."""
        tensor = self.empty(array.shape, dtype)
        tensor.write(array)
        return tensor

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array's bytes to an address, without waiting for it."""
        with self.lock:
            self.check_open()
            if array.nbytes:
                staging = self._staging(array.nbytes)
                flat = np.ascontiguousarray(array).reshape(-1)
                staging.array[: array.nbytes] = flat.view(np.uint8)
                self._copy(address, staging.address, array.nbytes, "HostToDevice")
                self._give_back(staging)

    def clear(self, tensor: DeviceTensor) -> None:
        """Fill a tensor with zeros, without waiting for it."""
        with self.lock:
            self.check_open()
            clear = self.cuda.cudaMemsetAsync
            self._check(clear(tensor.address, 0, tensor.nbytes, self.stream), "clearing memory")

    def copy(
        self, source: DeviceTensor, target: DeviceTensor, start: int, row: int, rows: int
    ) -> None:
        """Copy rows from `start` of one tensor [N, …] to `row` on of another, without waiting for it."""
        width = math.prod(source.shape[1:]) * held(source.dtype).itemsize
        to, begin = target.address + row * width, source.address + start * width
        with self.lock:
            self.check_open()
            self._copy(to, begin, rows * width, "DeviceToDevice")

    def download(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """Copy bytes to the host, when all that was asked of the GPU before is done."""
        with self.lock:
            self.check_open()
            if not nbytes:
                return np.empty(0, np.uint8)
            staging = self._staging(nbytes)
            self._copy(staging.address, address, nbytes, "DeviceToHost")
            self.synchronize()
            array: NDArray[np.uint8] = staging.array[:nbytes].copy()
            self._give_back(staging)
            return array

    def synchronize(self) -> None:
        """Wait for all that was asked of the GPU.

        Raises:
            BackendError: Some of it failed.
        """
        self._check(self.cuda.cudaStreamSynchronize(self.stream), "work on the GPU")

    def capture(self, work: Callable[[], None]) -> Any:
        """Capture the work as a CUDA graph instead of doing it; the graph, to be launched.

        Raises:
            BackendError: The work cannot be captured.
        """
        cuda = self.cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(cuda.cudaStreamBeginCapture(self.stream, mode), "capturing a CUDA graph")
        try:
            work()
        except BackendError:
            _, graph = cuda.cudaStreamEndCapture(self.stream)
            if graph is not None and int(graph):
                cuda.cudaGraphDestroy(graph)
            cuda.cudaGetLastError()
            raise
        graph = self._check(cuda.cudaStreamEndCapture(self.stream), "capturing a CUDA graph")
        try:
            return self._check(cuda.cudaGraphInstantiate(graph, 0), "making a CUDA graph")
        finally:
            cuda.cudaGraphDestroy(graph)

    def launch(self, graph: Any) -> None:
        """Do the work of a CUDA graph."""
        self._check(self.cuda.cudaGraphLaunch(graph, self.stream), "launching a CUDA graph")

    def destroy(self, graph: Any) -> None:
        """Free a CUDA graph."""
        self.cuda.cudaGraphExecDestroy(graph)

    def check_open(self) -> None:
        """ClosedError after `close`."""
        if self.closed:
            raise ClosedError("the GPU was closed with its pipeline; load the bundle again")

    def close(self) -> None:
        """Free everything; closing twice is fine."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self.cuda.cudaStreamSynchronize(self.stream)
            for address in self._owned:
                self.cuda.cudaFree(address)
            for staging in self._staged:
                self.cuda.cudaEventDestroy(staging.event)
                self.cuda.cudaFreeHost(staging.address)
            self.cuda.cudaStreamDestroy(self.stream)

    def _check(self, answer: tuple[Any, ...], what: str) -> Any:
        """What a CUDA call gave; see `check`."""
        return check(self.cuda, answer, what)

    def _copy(self, to: int, source: int, nbytes: int, kind: str) -> None:
        """Enqueue a copy; `kind` is CUDA's name of it."""
        where = getattr(self.cuda.cudaMemcpyKind, f"cudaMemcpy{kind}")
        copied = self.cuda.cudaMemcpyAsync(to, source, nbytes, where, self.stream)
        self._check(copied, f"a copy ({kind})")

    def _give_back(self, staging: Staging) -> None:
        """Let pinned memory be used again when the stream has come to here."""
        self._check(self.cuda.cudaEventRecord(staging.event, self.stream), "recording an event")
        self._staged.append(staging)

    def _staging(self, size: int) -> Staging:
        """Pinned memory of at least `size` bytes that no copy uses any more."""
        cuda = self.cuda
        for place, staging in enumerate(self._staged):
            if len(staging.array) >= size and int(cuda.cudaEventQuery(staging.event)[0]) == 0:
                del self._staged[place]
                return staging
        rounded = block_size(size)
        address = int(self._check(cuda.cudaHostAlloc(rounded, 0), "taking pinned host memory"))
        event = check(
            cuda, cuda.cudaEventCreateWithFlags(cuda.cudaEventDisableTiming), "making a CUDA event"
        )
        return Staging(view(address, rounded), address, event)


def view(address: int, size: int) -> NDArray[np.uint8]:
    """Host memory as bytes."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
