"""Rankings of visual tokens: the top k of scores, and how far two rankings agree on it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveate.runtime.keep import kept_count

RATIOS = (0.5, 0.25, 0.1)
"""The shares of tokens kept for which overlaps are given."""


def top(
    scores: NDArray[np.floating], count: int, candidates: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Find the `count` highest scores; of equal ones the first.

    Args:
        scores: [N_v], not NaN.
        count: At most N_v, or as many as there are candidates.
        candidates: bool [N_v], which compete; the others are found too, and are not counted. None is all.

    Returns:
        int64, their ordinals, ascending.
    """
    if candidates is None:
        candidates = np.ones(len(scores), np.bool_)
    found = ~candidates
    found[candidates] = _ranks(scores[candidates]) < count
    return np.flatnonzero(found).astype(np.int64)


def overlap(
    scores: NDArray[np.floating], truth: NDArray[np.floating], counts: Sequence[int]
) -> NDArray[np.float64]:
    """|top-k(scores) ∩ top-k(truth)| / k for each k of `counts`.

    Args:
        scores: [N_v].
        truth: [N_v].
        counts: Each from 1 to N_v.

    Returns:
        float64 [len(counts)].
    """
    ranks = np.maximum(_ranks(scores), _ranks(truth))
    return np.array([(ranks < count).sum() / count for count in counts])


def overlap_at_ratios(
    scores: NDArray[np.floating], truth: NDArray[np.floating]
) -> NDArray[np.float64]:
    """The `overlap` of two rankings [N_v] for each of `RATIOS`: float64 [3]."""
    return overlap(scores, truth, _counts(len(scores)))


def chance(total: int) -> NDArray[np.float64]:
    """The overlap to expect of a random ranking of `total` tokens, for each of `RATIOS`: float64 [3]."""
    return np.array(_counts(total)) / total


def _counts(total: int) -> list[int]:
    """How many of `total` tokens each of `RATIOS` keeps."""
    return [kept_count(ratio, total) for ratio in RATIOS]


def _ranks(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Each token's place in the ranking, from 0."""
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return ranks
