"""Pictures and videos of ever new sizes as runs of few shapes: padded to buckets, or in parts."""

import threading
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foveate.families.base import Call
from foveate.runtime.backends.buckets import Repeats, bucket

PICTURE = 64
"""A picture is padded to a multiple of so many visual tokens."""
PART = 2048
"""A video is run in parts of at most so many visual tokens, which keep a GPU busy."""


class PaddedRun(NamedTuple):
    """A run of the vision graph.

    Attributes:
        call: What it takes.
        rows: Rows of its output, padding among them.
        repeats: Whether it is a whole that comes again and again, to be captured as it is.
    """

    call: Call
    rows: int
    repeats: bool = False


class Padding:
    """Which shapes are run as they are, for all threads, and each thread's memory for padded pictures."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.repeats = Repeats()
        self.own = threading.local()

    def runs(self, call: Call) -> list[PaddedRun]:
        """The runs that a picture or a video takes.

        Padded inputs are in the thread's own memory, which its next picture is written to.
        """
        if self.repeats.comes_again(call.shapes):
            return [PaddedRun(call, call.tokens, repeats=True)]
        parts = call.parts(PART)
        if len(parts) > 1:
            return [PaddedRun(part, part.rows) for part in parts]
        rows = bucket(call.tokens, PICTURE)
        padded = call.padded(rows, self.empty)
        return [PaddedRun(padded, call.tokens if padded is call else rows)]

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The thread's memory as an array with any values in it."""
        nbytes = prod(shape) * dtype.itemsize
        memory: NDArray[np.uint8] | None = getattr(self.own, "memory", None)
        if memory is None or memory.nbytes < nbytes:
            memory = self.own.memory = np.empty(nbytes, np.uint8)
        return memory[:nbytes].view(dtype).reshape(shape)
