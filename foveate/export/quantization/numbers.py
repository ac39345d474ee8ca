"""Weights as 8-bit and 4-bit numbers with scales: symmetric, rounded to the nearest."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import Quantized

LARGEST: dict[Quantized, float] = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}
STORED: dict[Quantized, Any] = {
    "int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn, "int4": ml_dtypes.int4,
}  # fmt: skip
BLOCKS = (128, 64, 32)
SHRINKS = tuple(1 - step / 40 for step in range(17))
"""How far a block's largest value may be cut to round the others finer."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantized weight: `codes * scales`, the scales repeated over channels or blocks.

    Attributes:
        codes: [K, N], int8, float8_e4m3fn or int4.
        scales: [N] for each output channel, or [K / block, N]; of the graph's float type.
        block: Rows to a scale; 0 for all of them.
    """

    codes: NDArray[Any]
    scales: NDArray[Any]
    block: int


def block_size(rows: int) -> int:
    """The rows of a weight [K, N] to a scale in int4: the most of `BLOCKS` that divide K, else 0."""
    return next((block for block in BLOCKS if rows % block == 0), 0)


def scale_of(largest: NDArray[Any], precision: Quantized, dtype: Any) -> NDArray[Any]:
    """Scales of the graph's float type that reach the largest magnitudes; 1 where all is zero."""
    scales = (largest / LARGEST[precision]).astype(dtype)
    return np.where(scales > 0, scales, np.ones((), dtype)).astype(dtype)


def quantize_weight(weight: NDArray[Any], precision: Quantized) -> Codes:
    """Quantize a weight [K, N]: int8 and fp8 by output channel, int4 by blocks of rows.

    Raises:
        ValueError: int4 and a K that no block divides.
    """
    values: NDArray[np.float32] = weight.astype(np.float32)
    if precision != "int4":
        scales = scale_of(np.abs(values).max(axis=0), precision, weight.dtype)
        return Codes(encode(np.divide(values, scales, dtype=np.float32), precision), scales, 0)
    rows, columns = values.shape
    block = block_size(rows)
    if not block:
        raise ValueError(f"{rows} rows are no multiple of {BLOCKS[-1]}")
    blocks = values.reshape(rows // block, block, columns)
    scales = best_scales(blocks, weight.dtype)
    codes = encode(np.divide(blocks, scales[:, None], dtype=np.float32), precision)
    return Codes(codes.reshape(rows, columns), scales, block)


def best_scales(blocks: NDArray[np.float32], dtype: Any) -> NDArray[Any]:
    """For each block [B, rows, N] the int4 scale [B, N] with the least squared error."""
    largest = np.abs(blocks).max(axis=1)
    best = scale_of(largest, "int4", dtype)
    least = np.full(largest.shape, np.inf, np.float32)
    for shrink in SHRINKS:
        scales = scale_of(largest * shrink, "int4", dtype)
        wide = scales[:, None].astype(np.float32)
        error = np.square(np.clip(np.rint(blocks / wide), -8, 7) * wide - blocks).sum(axis=1)
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    return best


def encode(values: NDArray[np.float32], precision: Quantized) -> NDArray[Any]:
    """Scaled values as codes."""
    if precision == "fp8":
        return np.clip(values, -448, 448).astype(STORED["fp8"])
    low, high = (-8, 7) if precision == "int4" else (-127, 127)
    return np.clip(np.rint(values), low, high).astype(np.int8).astype(STORED[precision])
