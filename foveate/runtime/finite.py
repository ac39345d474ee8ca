"""Numbers that are not finite: NaN and infinity, which no answer may be made from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import Precision, quantized
from foveate.errors import BackendError

DAMAGED = (
    "the checkpoint's weights hold or make such numbers: get them again from where they came from, and "
    "export them anew"
)


def remedy(precision: Precision, wider: str) -> str:
    """What to do about numbers that are not finite; never to use the precision that is in use.

    Args:
        precision: What the graphs compute in.
        wider: How to have them compute in a type that holds larger numbers than float16.
    """
    if quantized(precision):
        return (
            "quantization may not suit these weights: export the checkpoint with --precision fp32. If that "
            "changes nothing, its weights are damaged"
        )
    if precision == "fp16":
        return (
            f"half precision holds numbers up to 65,504 only: {wider}. If that changes nothing, the checkpoint's "
            "weights are damaged"
        )
    return DAMAGED


def check_finite(array: NDArray[Any], what: str, advice: str) -> None:
    """Refuse an array in which any number is not finite.

    Args:
        array: The numbers.
        what: They in words, such as "the logits".
        advice: What `remedy` gave.

    Raises:
        BackendError: One of them is not finite.
    """
    if not np.isfinite(array).all():
        raise BackendError(
            f"{what} are not finite (NaN or infinity), so there is no answer; {advice}"
        )
