"""Overlap: how many of the tokens that one ranking keeps another keeps too."""

import numpy as np
from numpy.typing import NDArray

from foveate.runtime.keep import kept_count

RATIOS = (0.5, 0.25, 0.1)


def overlap(scores: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """|top-k(scores) ∩ top-k(truth)| / k for each of `RATIOS`; of equal values the first count.

    Args:
        scores: [N_v].
        truth: [N_v].

    Returns:
        float64 [3].
    """
    ranks = np.maximum(_ranks(scores), _ranks(truth))
    counts = [kept_count(ratio, len(scores)) for ratio in RATIOS]
    return np.array([(ranks < count).sum() / count for count in counts])


def chance(total: int) -> NDArray[np.float64]:
    """The overlap to expect of a random ranking of `total` tokens, for each of `RATIOS`: float64 [3]."""
    return np.array([kept_count(ratio, total) / total for ratio in RATIOS])


def _ranks(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Each token's place in the ranking, from 0."""
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return ranks
