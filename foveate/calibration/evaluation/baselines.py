"""Choices that know nothing of the question: chance, the middle of the picture, smaller pictures."""

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveate.families.base import VisualInput


def random_scores(name: str, total: int, seed: int = 0) -> NDArray[np.float64]:
    """Draw scores float64 [total] from 0 to 1 that only a record's name and the seed decide."""
    text = name if seed == 0 else f"{name}\n{seed}"
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(drawn).random(total)


def centre_scores(visual: VisualInput) -> NDArray[np.float64]:
    """Score tokens float64 [N_v] by how near they are to the middle of their picture."""
    left, top, right, bottom = visual.boxes.astype(np.float64).T
    # Tokens as far away on another side count as equal, whatever rounding says.
    away: NDArray[np.float64] = np.hypot((left + right - 1) / 2, (top + bottom - 1) / 2)
    return -np.round(away, 5)


def shares(counts: Sequence[int], most: int) -> list[int]:
    """Divide `most` tokens among pictures in proportion to their own, at least one each.

    Args:
        counts: Each picture's visual tokens, at least one.
        most: How many they may have together.

    Returns:
        Each picture's share; together `most`, or one a picture where that is more.
    """
    spare = np.cumsum(np.array(counts) - 1)
    edges = spare * max(0, most - len(counts)) // max(1, int(spare[-1]))
    return list((1 + np.diff(edges, prepend=0)).tolist())


def overlap(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """The Jaccard index of two sets of tokens: those in both, of those in either."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(1, len(one) + len(other) - both)


@functools.lru_cache(4096)
def overlap_by_chance(total: int, kept: int) -> float:
    """The Jaccard index to expect of two random choices of `kept` of `total` tokens."""

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    expected = 0.0
    for both in range(max(0, 2 * kept - total), kept + 1):
        ways = log_choose(kept, both) + log_choose(total - kept, kept - both)
        expected += math.exp(ways - log_choose(total, kept)) * both / max(1, 2 * kept - both)
    return expected
