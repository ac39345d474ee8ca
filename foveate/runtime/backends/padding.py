"""Pictures of ever new sizes in a few shapes: filled up to buckets of visual tokens."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.runtime.language.shared import rounded

PADDED = 64
"""A picture is filled up to a multiple of so many visual tokens."""
MOST_PADDED = 1024
"""Visual tokens of the largest picture that is filled up."""
MOST_EXACT = 8
"""Sizes that are recorded as they are, because they came again."""
MOST_SEEN = 256

Arrays = dict[str, NDArray[Any]]
Sizes = tuple[int, ...]


class Padding:
    """Which pictures are filled up, for all threads, and each thread's memory to fill them up in."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.lock = threading.Lock()
        self.seen: set[Sizes] = set()
        self.exact: set[Sizes] = set()
        self.own = threading.local()

    def comes_again(self, sizes: Sizes) -> bool:
        """Whether levels of these sizes are to be recorded as they are; remembers that they came."""
        with self.lock:
            if sizes in self.exact:
                return True
            if sizes in self.seen and len(self.exact) < MOST_EXACT:
                self.exact.add(sizes)
                return True
            if len(self.seen) >= MOST_SEEN:
                self.seen.clear()
            self.seen.add(sizes)
            return False

    def fill_up(self, feeds: Arrays, count: int) -> tuple[Arrays, int]:
        """What the vision graph takes of a picture of `count` tokens, filled up, and its tokens then.

        The levels are the thread's own memory, which the next picture of the bucket is written to.
        """
        levels, places = feeds["levels"], feeds["position_ids"]
        padded = rounded(count, PADDED)
        patches = padded * len(places) // count
        times, frames, runs, width = levels.shape
        sizes = times, frames, runs // len(places) * patches, width
        memory: dict[Sizes, NDArray[Any]] = self.own.__dict__.setdefault("levels", {})
        if sizes not in memory:
            memory[sizes] = np.empty(sizes, levels.dtype)
        memory[sizes][:, :, :runs] = levels
        all_places = np.zeros((patches, 2), places.dtype)
        all_places[: len(places)] = places
        return {**feeds, "levels": memory[sizes], "position_ids": all_places}, padded


def can_pad(feeds: Arrays, count: int) -> bool:
    """Whether it is one picture, or one step of a video, and small enough to be filled up."""
    return len(feeds["lengths"]) == 1 and count <= MOST_PADDED
