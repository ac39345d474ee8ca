"""What the runtime asks of a backend: open a graph, say what it takes and gives, run it, close it."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import TensorSpec

HELD = {"bfloat16": "uint16"}
"""Types that numpy lacks, and the type of the same size that holds them."""


def held(dtype: str) -> np.dtype[Any]:
    """The numpy type that holds a type of the manifest."""
    return np.dtype(HELD.get(dtype, dtype))


class Value(Protocol):
    """A tensor where the backend keeps it: host memory or a device."""

    def numpy(self) -> NDArray[Any]:
        """Copy to (or view in) host memory."""
        ...

    def shape(self) -> list[int]:
        """Its sizes."""
        ...


Tensor = NDArray[Any] | Value
"""An array in host memory, or a tensor where a backend keeps it."""

Feeds = Mapping[str, Tensor]


def on_host(tensor: Tensor) -> NDArray[Any]:
    """A tensor in host memory, where it may be already."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


def length(tensor: Tensor) -> int:
    """The size of a tensor's first axis."""
    return len(tensor) if isinstance(tensor, np.ndarray) else tensor.shape()[0]


class Engine(Protocol):
    """One opened graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Feeds) -> dict[str, Value]:
        """Run once; outputs stay where the backend keeps them.

        Raises:
            BackendError: The backend refused the inputs or failed.
            ClosedError: The engine was closed.
        """
        ...

    def close(self) -> None:
        """Free the graph; closing twice is fine."""
        ...
