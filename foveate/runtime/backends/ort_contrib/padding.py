"""Pictures and videos of ever new sizes in a few shapes: filled up to buckets, or in parts of 1, 2, 4 … steps."""

import threading
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.runtime.backends.ort_contrib.buckets import Repeats, bucket, lengthened

PICTURE = 64
"""A picture is filled up to a multiple of so many visual tokens."""
PART = 2048
"""A video is run in parts of at most so many visual tokens, which keep a GPU busy."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """A run of the vision graph.

    Attributes:
        feeds: What it takes.
        tokens: Visual tokens that it gives; what fills a picture up comes last.
        count: How many of them are real.
        again: Whether it is a whole that comes again and again, to be recorded as it is.
    """

    feeds: Arrays
    tokens: int
    count: int
    again: bool = False


class Padding:
    """What is run in which shapes, for all threads, and each thread's memory to fill pictures up in."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.repeats = Repeats()
        self.own = threading.local()

    def parts(self, feeds: Arrays, count: int) -> list[Part]:
        """The runs that a picture or a video of `count` visual tokens takes."""
        if self.repeats.comes_again(feeds["levels"].shape):
            return [Part(feeds, count, count, again=True)]
        if len(feeds["lengths"]) == 1:
            return [self.fill_up(feeds, count)]
        return split(feeds, count)

    def fill_up(self, feeds: Arrays, count: int) -> Part:
        """A picture, or one step of a video, filled up to its bucket.

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
        places = lengthened(places, patches - len(places))
        return Part({**feeds, "levels": filled, "position_ids": places}, padded, count)


def split(feeds: Arrays, count: int) -> list[Part]:
    """A video in parts of 1, 2, 4 … steps, so that videos of any length are of the same few shapes."""
    times, start = len(feeds["lengths"]), 0
    tokens = count // times
    parts = []
    while start < times:
        most = min(max(1, PART // tokens), times - start)
        steps = 1 << (most.bit_length() - 1)
        taken = {name: feeds[name][start : start + steps] for name in ("levels", "lengths")}
        parts.append(Part({**feeds, **taken}, steps * tokens, steps * tokens))
        start += steps
    return parts
