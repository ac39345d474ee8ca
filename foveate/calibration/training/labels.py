"""Labels: what f_θ is trained to predict, made of a relevance map (paper, Eq. 3)."""

import numpy as np
from numpy.typing import NDArray

from foveate.calibration.ranking import top


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
