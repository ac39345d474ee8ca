"""Labels: what f_θ is trained to predict, made of relevance maps (paper, Eq. 3)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveate.calibration.ranking import top
from foveate.calibration.relevance.store import Sample

LabelKind = Literal["relevance", "contrast"]
MakeLabel = Callable[[Sample], NDArray[np.float32] | None]
"""Makes a sample's label R_v* float32 [N_v]; None where there is none to make."""


def label_maker(kind: LabelKind, samples: Iterable[Sample]) -> MakeLabel:
    """What makes the labels of some samples.

    Args:
        kind: "relevance" is R_v itself; "contrast" sets it against that of the other questions about the
            same pictures, where there are any.
        samples: All of them; "contrast" reads them once.
    """
    if kind == "relevance":
        return lambda sample: label(sample.relevance)
    sums: defaultdict[tuple[tuple[str, ...], int], NDArray[np.float64] | float] = defaultdict(float)
    counts: defaultdict[tuple[tuple[str, ...], int], int] = defaultdict(int)
    for sample in samples:
        own = shares(sample.relevance)
        if own is not None:
            sums[_shown(sample)] += own
            counts[_shown(sample)] += 1

    def make(sample: Sample) -> NDArray[np.float32] | None:
        """The label of one of them."""
        own, key = shares(sample.relevance), _shown(sample)
        if own is None or counts[key] < 2:
            return label(sample.relevance)
        others = (sums[key] - own) / (counts[key] - 1)
        return label(np.asarray(contrasted(own, others), np.float32))

    return make


def contrast(
    relevance: NDArray[np.float32], others: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Relevance to one question set against that to other questions about the same pictures.

    Args:
        relevance: float32 [N_v], R_v of the question.
        others: The same of each other question; those without a positive value are left out.

    Returns:
        float32 [N_v], not negative; `relevance` itself where there is nothing to set it against.
    """
    own, found = shares(relevance), [one for one in map(shares, others) if one is not None]
    if own is None or not found:
        return relevance
    return np.asarray(contrasted(own, np.mean(found, axis=0)), np.float32)


def contrasted(own: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a question has more than others do, of shares float64 [N_v]: p · p / (p + m).

    What others alone rest on all but goes, and nothing of what the question rests on falls below what
    nobody does: a question about the whole picture keeps its things before the background.
    """
    whole = own + others
    return np.divide(own * own, whole, out=np.zeros_like(own), where=whole > 0)


def shares(relevance: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Relevance as a distribution float64 [N_v], negative values as 0; None where there is none."""
    exact = relevance.astype(np.float64).clip(min=0)
    total = exact.sum()
    return exact / total if np.isfinite(total) and total > 0 else None


def label(relevance: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """R_v*: relevance with its bottom half masked, divided by its sum.

    Relevance by Eq. 1 is signed; of what the mask leaves, negative values count as 0 too. Of equal
    values the first are kept.

    Args:
        relevance: float32 [N_v], R_v.

    Returns:
        float32 [N_v], a distribution with at most ceil(N_v / 2) values above 0; None where there is
        none to make: a value that is not finite, or no value above 0.
    """
    exact = relevance.astype(np.float64)
    upper = top(exact, (len(exact) + 1) // 2)
    kept = np.zeros_like(exact)
    kept[upper] = exact[upper].clip(min=0)
    total = kept.sum()
    if not np.isfinite(exact).all() or not total > 0:
        return None
    return np.asarray(kept / total, np.float32)


def _shown(sample: Sample) -> tuple[tuple[str, ...], int]:
    """What a sample's questions are about: its pictures, and how many tokens show them."""
    return sample.pictures or (sample.id,), len(sample.relevance)
