"""What a TensorRT engine takes and gives, held against what the manifest promises of its graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from foveate.manifest import TensorSpec

DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32",
    "INT8": "int8", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""TensorRT's names of types and the manifest's."""

HELD = {"bfloat16": "uint16"}
"""Types that numpy lacks, and the type of the same size that holds them."""


def held(dtype: str) -> np.dtype[Any]:
    """The numpy type that holds a type of the manifest."""
    return np.dtype(HELD.get(dtype, dtype))


def agrees(
    promise: TensorSpec,
    dtype: str,
    shape: Sequence[int],
    *,
    only: Sequence[int | None] | None,
    narrow: bool,
) -> bool:
    """Whether a tensor of TensorRT's is what the manifest promises.

    Args:
        promise: What the manifest says.
        dtype: TensorRT's type, in the manifest's words.
        shape: TensorRT's shape, -1 where it is free.
        only: For each axis of an input the one size that the engine's profiles take, if it is one:
            TensorRT may call it fixed. None for an output, whose free sizes it may know to be fixed.
        narrow: Whether this TensorRT has no 64-bit integers, so that 32 bits will do.
    """
    right = {promise.dtype, "int32"} if narrow and promise.dtype == "int64" else {promise.dtype}
    same = len(shape) == len(promise.shape) and all(
        size in (-1, axis) if isinstance(axis, int) else only is None or size in (-1, only[place])
        for place, (size, axis) in enumerate(zip(shape, promise.shape, strict=True))
    )
    return dtype in right and same
