"""Buckets: the few sizes that calls of any size are padded to, until their own size has come often.

Libraries plan kernels anew for a size that they have not seen (cuDNN's attention: tens of milliseconds),
and a CUDA graph is of one size.
"""

import threading
from collections import Counter
from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 32
AGAIN = 3
"""A size that comes for this time is run as it is."""
MOST_EXACT = 8
"""Sizes that are run as they are."""
MOST_SEEN = 256


def rounded(count: int, unit: int) -> int:
    """`count` up to the next multiple of `unit`."""
    return -(-count // unit) * unit


def bucket(count: int, unit: int) -> int:
    """What `count` is padded to: multiples of `unit`, of more and more beyond `STEPS` of them.

    So padding is little, at most a sixteenth beyond the first steps, and buckets stay few.
    """
    while count > STEPS * unit:
        unit *= 2
    return rounded(count, unit)


def padded(rows: NDArray[Any], more: int) -> NDArray[Any]:
    """An array with `more` rows of zeros after its own."""
    if not more:
        return rows
    whole = np.zeros((len(rows) + more, *rows.shape[1:]), rows.dtype)
    whole[: len(rows)] = rows
    return whole


class Counts(Counter[Hashable]):
    """How often each of some things came; all are forgotten once they are too many."""

    def note(self, thing: Hashable) -> int:
        """Count a thing, and say how often it came."""
        if len(self) >= MOST_SEEN:
            self.clear()
        self[thing] += 1
        return self[thing]


class Repeats:
    """Which sizes have come often, for all threads."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.lock = threading.Lock()
        self.counts = Counts()
        self.exact: set[Hashable] = set()

    def comes_again(self, size: Hashable) -> bool:
        """Whether a call of this size is run as it is; remembers that it came."""
        with self.lock:
            if size in self.exact:
                return True
            if self.counts.note(size) < AGAIN or len(self.exact) >= MOST_EXACT:
                return False
            self.exact.add(size)
            return True
