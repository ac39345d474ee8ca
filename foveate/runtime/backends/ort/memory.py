"""Memory that onnxruntime allocated, and the runs that still work on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import short
from foveate.errors import BackendError
from foveate.runtime.backends.ort.capture_gate import GATE
from foveate.runtime.backends.ort.library import ort
from foveate.runtime.tensors import DeviceTensor, held

OUT_OF_MEMORY = ("allocate", "out of memory", "bad_alloc", "alloc_failed")
"""What onnxruntime's messages hold where memory ran out."""
SMALL = 1 << 16
"""Bytes up to which comparing an array with what was written before is quicker than writing it."""


class OrtMemory:
    """An OrtValue; see `Memory`.

    Attributes:
        value: The OrtValue.
        writer: The engine that wrote to it last, whose runs may not be done; None in host memory.
    """

    __slots__ = ("_address", "_itemsize", "_written", "device", "source", "value", "writer")

    def __init__(self, value: Any, device: str, itemsize: int, source: Any = None) -> None:
        """Hold `value`; one in host memory may borrow `source`."""
        self.value, self.device, self.source = value, device, source
        self._itemsize = itemsize
        self._address: int | None = None
        self.writer: Any = None
        self._written: NDArray[Any] | None = None

    @property
    def address(self) -> int:
        """Where it begins."""
        if self._address is None:
            self._address = int(self.value.data_ptr())
        return self._address

    @property
    def nbytes(self) -> int:
        """Its size."""
        return int(prod(self.value.shape())) * self._itemsize

    def read(self, begin: int, nbytes: int) -> NDArray[np.uint8]:
        """Copy to host memory, when the runs that write to it are done."""
        self.wait()
        with GATE:
            whole = self.value.numpy().reshape(-1).view(np.uint8)
        part: NDArray[np.uint8] = whole[begin : begin + nbytes]
        return part

    def write(self, begin: int, array: NDArray[Any]) -> None:
        """Copy an array of the memory's own size into it, unless it is a small one that is there already."""
        assert begin == 0 and array.nbytes == self.nbytes
        if self._written is not None and np.array_equal(self._written, array):
            return
        with GATE:
            self.value.update_inplace(np.ascontiguousarray(array).reshape(self.value.shape()))
        self._written = np.array(array) if array.nbytes <= SMALL else None

    def wait(self) -> None:
        """Wait for the runs that write to it."""
        if self.writer is not None:
            self.writer.wait()


def upload(array: NDArray[Any], dtype: str, device: str) -> DeviceTensor:
    """An array's copy on a device, or the array itself where that is host memory.

    Raises:
        BackendError: There is no memory for it.
    """
    with allocating(array.nbytes, device):
        value = ort.OrtValue.ortvalue_from_numpy(array, device, 0)
    return DeviceTensor(OrtMemory(value, device, array.itemsize, array), array.shape, dtype)


def empty(shape: tuple[int, ...], dtype: str, device: str) -> DeviceTensor:
    """Memory for a tensor, with any values in it.

    Raises:
        BackendError: There is not as much.
    """
    kind = held(dtype)
    with allocating(prod(shape) * kind.itemsize, device):
        value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, device, 0)
    return DeviceTensor(OrtMemory(value, device, kind.itemsize), shape, dtype)


def zeros(shape: tuple[int, ...], dtype: str, device: str) -> DeviceTensor:
    """Memory for a tensor of zeros.

    Raises:
        BackendError: There is not as much.
    """
    return upload(np.zeros(shape, held(dtype)), dtype, device)


@contextmanager
def allocating(count: int, device: str) -> Iterator[None]:
    """Turn a refusal of `count` bytes into a BackendError that says how many were wanted."""
    try:
        with GATE:
            yield
    except Exception as error:
        raise BackendError(
            f"{count / 2**20:.0f} MiB on the {device} could not be allocated: {advice(error)}"
        ) from error


def advice(error: Exception) -> str:
    """An onnxruntime message in a line, with what to do where memory ran out."""
    line = first_line(error)
    if isinstance(error, MemoryError) or any(one in line.lower() for one in OUT_OF_MEMORY):
        line += (
            "; there was not enough memory: keep fewer visual tokens, use smaller pictures, or ask for "
            "a shorter answer"
        )
    return line


def first_line(error: Exception) -> str:
    """The part of an onnxruntime message that a person can use."""
    return (
        short(str(error).strip().splitlines()[0], 400)
        if str(error).strip()
        else type(error).__name__
    )
