"""Taps: which rows of a vision graph's output make up each visual token, and with what weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TAPS = 4
"""The most rows that make up a token: bilinear interpolation has a square of them."""
NEWLINE = -1
"""Stands for the vision graph's last row, which shows nothing."""


@dataclass(frozen=True, slots=True)
class TappedTokens:
    """Tokens that follow each other in a prompt, such as those of a picture.

    Attributes:
        rows: int64 [N, TAPS], or of more taps where they are pooled, from the picture's first row on; `NEWLINE` stands for a newline.
        weights: float32 of the same shape, 0 for padding.
        picture: int64 [N], which picture or frame each shows, from this one's first on.
        boxes: float32 [N, 4]; see `VisualInput`.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    picture: NDArray[np.int64]
    boxes: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        rows: NDArray[np.int64],
        weights: NDArray[np.float32],
        boxes: NDArray[np.float32],
        taps: int = TAPS,
    ) -> "TappedTokens":
        """Tokens of one picture: rows and weights [N, K], padded to so many taps, boxes [N, 4]."""
        more = ((0, 0), (0, taps - rows.shape[1]))
        picture = np.zeros(len(rows), np.int64)
        return cls(np.pad(rows, more), np.pad(weights, more), picture, boxes)

    @classmethod
    def newline(cls, taps: int = TAPS) -> "TappedTokens":
        """One newline."""
        row, weight = np.array([[NEWLINE]], np.int64), np.ones((1, 1), np.float32)
        return cls.of(row, weight, np.zeros((1, 4), np.float32), taps)

    def shifted(self, rows: int, pictures: int) -> "TappedTokens":
        """The same, after so many rows and pictures."""
        moved = np.where(self.rows == NEWLINE, NEWLINE, self.rows + rows)
        return TappedTokens(moved, self.weights, self.picture + pictures, self.boxes)

    def part(self, begin: int, end: int) -> "TappedTokens":
        """Those from `begin` to before `end`."""
        span = slice(begin, end)
        return TappedTokens(
            self.rows[span], self.weights[span], self.picture[span], self.boxes[span]
        )

    def __len__(self) -> int:
        return len(self.rows)


def joined(parts: Sequence[TappedTokens]) -> TappedTokens:
    """Tokens one after the other; those of no part where there is none."""
    none = TappedTokens(
        np.empty((0, TAPS), np.int64),
        np.empty((0, TAPS), np.float32),
        np.empty(0, np.int64),
        np.empty((0, 4), np.float32),
    )
    columns = zip(*((p.rows, p.weights, p.picture, p.boxes) for p in parts or (none,)), strict=True)
    rows, weights, picture, boxes = map(np.concatenate, columns)
    return TappedTokens(rows, weights, picture, boxes)


def single(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Taps int64 and float32 [N, 1] of tokens that are rows themselves."""
    flat = rows.reshape(-1, 1)
    return flat, np.ones(flat.shape, np.float32)


def interpolated(
    rows: NDArray[np.int64], height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Taps of a grid of rows [R, C], interpolated bilinearly to another size: int64, float32 [height · width, 4].

    Corners are not aligned and nothing is smoothed, as torch's interpolate does by default.
    """
    (tops, down), (lefts, across) = (
        _axis(*sizes) for sizes in zip(rows.shape, (height, width), strict=True)
    )
    found = rows[tops[:, None, :, None], lefts[None, :, None, :]]
    weights = down[:, None, :, None] * across[None, :, None, :]
    return found.reshape(-1, TAPS), weights.reshape(-1, TAPS)


def _axis(inside: int, outside: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The two places of each of `outside` along an axis of `inside`, and their weights, [outside, 2]."""
    scale = float(np.float32(inside) / np.float32(outside))
    # torch rounds once, after a fused multiply and add.
    exact = scale * (np.arange(outside) + 0.5) - 0.5
    places = np.maximum(exact.astype(np.float32), 0)
    first = np.minimum(places.astype(np.int64), inside - 1)
    second = np.minimum(first + 1, inside - 1)
    share = np.clip(places - first.astype(np.float32), 0, 1).astype(np.float32)
    return np.stack([first, second], -1), np.stack([1 - share, share], -1)
