"""Which part of which picture each visual token shows, for made-up questions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Shown:
    """The picture int64 [N_v] and the box float32 [N_v, 4] of each token."""

    picture: NDArray[np.int64]
    boxes: NDArray[np.float32]


def tiled(*grids: tuple[int, int]) -> Shown:
    """Pictures whose tokens fill (rows, columns) without overlap, row by row."""
    boxes = [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for rows, columns in grids
        for row in range(rows)
        for column in range(columns)
    ]
    picture = np.repeat(np.arange(len(grids)), [rows * columns for rows, columns in grids])
    return Shown(picture, np.array(boxes, np.float32).reshape(-1, 4))
