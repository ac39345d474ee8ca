"""Baselines that know nothing of the question: random scores, and smaller pictures."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def random_scores(name: str, total: int) -> NDArray[np.float64]:
    """Draw scores float64 [total] from 0 to 1 that only a record's name decides."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).random(total)


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
