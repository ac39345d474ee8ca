"""Made-up samples whose relevance a convolution can learn from attention."""

import numpy as np

from foveate.calibration.relevance.store import Sample
from foveate.calibration.training.labels import label_maker
from tests.calibration.boxes import tiled

HEADS, WORDS = 4, 5
BY_RELEVANCE = label_maker("relevance", ())


def scene(side: int, number: int) -> Sample:
    """Relevance is attention summed over three neighbours along a row: what a convolution can learn.

    Of the instruction's tokens one attends as relevance asks, the others evenly.
    """
    random = np.random.default_rng([side, number])
    attention = random.random((HEADS, side, side)) ** 6
    attention /= 2 * attention.sum((1, 2), keepdims=True)
    shown = tiled((side, side))
    flat = attention.reshape(HEADS, -1)
    words = np.full((WORDS, side**2), 1 / (2 * side**2))
    words[2] = flat.mean(0)
    relevance = np.convolve(flat.mean(0), (1, 1, 1), "same") ** 2 * side**2 - 1e-3
    return Sample(
        f"s{number:04d}", "Where?", ("there",), "there", 1, (f"p{number // 2}.png",),
        shown.picture.astype(np.int32), shown.boxes, relevance.astype(np.float32), flat.astype(np.float32),
        np.arange(WORDS, dtype=np.int32), words.astype(np.float32),
    )  # fmt: skip


def scenes(count: int = 48, first: int = 0) -> list[Sample]:
    """Sides from 4 to 8, two questions about each picture."""
    return [scene(4 + number % 5, number) for number in range(first, first + count)]
