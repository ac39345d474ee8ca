"""Grids of visual tokens pooled to smaller ones, for families whose pictures give a fixed number."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PooledGrid:
    """A smaller grid, each of whose tokens is the mean over the part of the larger one that it covers.

    Attributes:
        rows: Of the smaller grid.
        columns: Of the smaller grid.
        sources: int64 [rows · columns, K], tokens of the larger grid, row by row.
        weights: float32 [rows · columns, K], the share of each; their sum is 1, padding has 0.
    """

    rows: int
    columns: int
    sources: NDArray[np.int64]
    weights: NDArray[np.float32]


def pool_grid(rows: int, columns: int, most: int) -> PooledGrid:
    """Pool a grid to at most so many tokens, its aspect kept as nearly as whole numbers allow.

    Args:
        rows: Of the grid.
        columns: Of the grid.
        most: The most tokens of the smaller one, at least one.
    """
    scale = min(1.0, math.sqrt(most / (rows * columns)))
    short = max(1, math.floor(min(rows, columns) * scale + 1e-9))
    long = max(1, min(max(rows, columns), most // short, math.ceil(max(rows, columns) * scale)))
    down, across = (short, long) if rows <= columns else (long, short)
    shares = np.kron(_shares(rows, down), _shares(columns, across))
    taken = max(1, int((shares > 0).sum(1).max()))
    sources = np.argsort(-shares, axis=1, kind="stable")[:, :taken].astype(np.int64)
    weights = np.take_along_axis(shares, sources, axis=1).astype(np.float32)
    return PooledGrid(down, across, sources, weights)


def _shares(cells: int, fewer: int) -> NDArray[np.float64]:
    """How much of each of `fewer` equal parts of a line each of its `cells` fills: [fewer, cells]."""
    edges = np.arange(fewer + 1) * cells / fewer
    left = np.maximum(edges[:-1, None], np.arange(cells))
    right = np.minimum(edges[1:, None], np.arange(1, cells + 1))
    parts: NDArray[np.float64] = np.clip(right - left, 0, None) * fewer / cells
    return parts
