"""Tensors where a backend keeps them: host arrays, and device memory whose values wait when they are read."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

HELD = {"bfloat16": "uint16"}
"""Types that numpy lacks, and the type of the same size that holds them."""


@functools.cache
def held(dtype: str) -> np.dtype[Any]:
    """The numpy type that holds a type of the manifest."""
    return np.dtype(HELD.get(dtype, dtype))


class Memory(Protocol):
    """A piece of device or host memory that one library allocated."""

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        ...

    @property
    def address(self) -> int:
        """Where it begins."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        ...

    def read(self, begin: int, nbytes: int) -> NDArray[np.uint8]:
        """Copy (or view) some bytes in host memory, when all work on them is done."""
        ...

    def write(self, begin: int, array: NDArray[Any]) -> None:
        """Copy an array's bytes to `begin`; later work on the device sees them."""
        ...

    def wait(self) -> None:
        """Wait for all work that was enqueued on it."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """A tensor at an address that stays, in memory that may hold more than it.

    Attributes:
        memory: Where it lies.
        shape: Its sizes.
        dtype: Its type, in the manifest's words.
        begin: Where it begins, in bytes from the memory's beginning.
        reads_as: The type that `numpy` gives, where a library has no other for it than `dtype`.
    """

    memory: Memory
    shape: tuple[int, ...]
    dtype: str
    begin: int = 0
    reads_as: str | None = None

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return self.memory.device

    @property
    def address(self) -> int:
        """Where its first element lies."""
        return self.memory.address + self.begin

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return prod(self.shape) * held(self.dtype).itemsize

    @property
    def room(self) -> int:
        """How many elements its memory holds from its beginning on."""
        return (self.memory.nbytes - self.begin) // held(self.dtype).itemsize

    def viewed(self, shape: tuple[int, ...], start: int = 0) -> "DeviceTensor":
        """The same memory with another shape, beginning `start` elements further on."""
        begin = self.begin + start * held(self.dtype).itemsize
        return DeviceTensor(self.memory, shape, self.dtype, begin, self.reads_as)

    def row(self, number: int) -> "DeviceTensor":
        """One row [1, ...] of a tensor [rows, ...]."""
        shape = (1, *self.shape[1:])
        return self.viewed(shape, number * prod(shape))

    def wait(self) -> None:
        """Wait for its value."""
        self.memory.wait()

    def numpy(self) -> NDArray[Any]:
        """Its value in host memory, waited for; bfloat16 as uint16."""
        data = self.memory.read(self.begin, self.nbytes)
        array = data.view(held(self.dtype)).reshape(self.shape)
        return array if self.reads_as is None else array.astype(held(self.reads_as))

    def write(self, array: NDArray[Any]) -> None:
        """Copy an array of the tensor's shape and type over it.

        Raises:
            BackendError: The device refused it.
        """
        self.memory.write(self.begin, array)


class Readable(Protocol):
    """A value that comes to the host when it is read."""

    def numpy(self) -> NDArray[Any]:
        """Its value, waited for."""
        ...


Tensor = NDArray[Any] | DeviceTensor
"""An array in host memory, or a tensor where a backend keeps it."""

Feeds = Mapping[str, Tensor]


def on_host(tensor: NDArray[Any] | Readable) -> NDArray[Any]:
    """A tensor in host memory, where it may be already."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


def wait(tensor: Tensor) -> None:
    """Wait for a tensor's value; a host array has it."""
    if isinstance(tensor, DeviceTensor):
        tensor.wait()


def clear(tensor: Tensor) -> None:
    """Zero all of a device tensor's memory, also what it is not itself; a host array stays as it is.

    Raises:
        BackendError: The device refused it.
    """
    if isinstance(tensor, DeviceTensor):
        kind = held(tensor.dtype)
        tensor.memory.write(0, np.zeros(tensor.memory.nbytes // kind.itemsize, kind))


@dataclass(slots=True)
class Call:
    """Inputs and outputs of one graph at fixed addresses, ready to run again and again.

    Attributes:
        inputs: By name.
        outputs: By name.
        handle: What the library runs.
    """

    inputs: dict[str, DeviceTensor]
    outputs: dict[str, DeviceTensor]
    handle: Any
