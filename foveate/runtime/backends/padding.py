"""Pictures of ever new sizes in a few shapes: filled up to buckets of visual tokens."""

import threading
from collections import Counter
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.runtime.buckets import bucket

PICTURE = 64
"""A picture is filled up to a multiple of so many visual tokens."""
AGAIN = 3
"""A size that comes for this time is recorded as it is."""
MOST_EXACT = 8
"""Sizes that are recorded as they are."""
MOST_SEEN = 256

Arrays = dict[str, NDArray[Any]]
Sizes = tuple[int, ...]


class Padding:
    """Which pictures are filled up, for all threads, and each thread's memory to fill them up in."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.lock = threading.Lock()
        self.seen: Counter[Sizes] = Counter()
        self.exact: set[Sizes] = set()
        self.own = threading.local()

    def comes_again(self, sizes: Sizes) -> bool:
        """Whether levels of these sizes are run as they are; remembers that they came."""
        with self.lock:
            if sizes in self.exact:
                return True
            if len(self.seen) >= MOST_SEEN:
                self.seen.clear()
            self.seen[sizes] += 1
            if self.seen[sizes] < AGAIN or len(self.exact) >= MOST_EXACT:
                return False
            self.exact.add(sizes)
            return True

    def fill_up(self, feeds: Arrays, count: int) -> tuple[Arrays, int]:
        """What the vision graph takes of a picture of `count` tokens, filled up, and its tokens then.

        The levels are the thread's own memory, which its next picture is written to.
        """
        levels, places = feeds["levels"], feeds["position_ids"]
        padded = bucket(count, PICTURE)
        patches = padded * len(places) // count
        times, frames, runs, width = levels.shape
        sizes = times, frames, runs // len(places) * patches, width
        memory: NDArray[Any] | None = getattr(self.own, "levels", None)
        if memory is None or memory.size < prod(sizes):
            # Any level is finite once it is normalised, so that what was left here does no harm.
            memory = self.own.levels = np.empty(prod(sizes), levels.dtype)
        filled = memory[: prod(sizes)].reshape(sizes)
        filled[:, :, :runs] = levels
        all_places = np.zeros((patches, 2), places.dtype)
        all_places[: len(places)] = places
        return {**feeds, "levels": filled, "position_ids": all_places}, padded


def can_pad(feeds: Arrays) -> bool:
    """Whether it is one picture, or one step of a video: what fills up comes after it."""
    return len(feeds["lengths"]) == 1
