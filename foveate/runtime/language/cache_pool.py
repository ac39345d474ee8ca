"""Memory for KV caches that sequences take turns with."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from foveate.errors import BackendError
from foveate.runtime.tensors import Call, DeviceTensor

SPARE = 2
"""Caches for one sequence that are kept for the next; of those for each other number of rows, one is."""


@dataclass(frozen=True, slots=True)
class CacheMemory:
    """Memory for some sequences at a time, a row each, and the calls that fill it.

    Attributes:
        rows: How many sequences.
        capacity: Tokens that each row has room for.
        states: Keys and values by name, [rows, kv_heads, capacity, head_dim].
        step: The decoder bound for one token a row.
        prompts: What a row's prefill writes to, by output of the decoder.
    """

    rows: int
    capacity: int
    states: dict[str, DeviceTensor]
    step: Call
    prompts: tuple[dict[str, DeviceTensor], ...]


class CachePool:
    """The caches that are not in use, for all threads.

    Attributes:
        drop: Told of memory that is let go.
    """

    def __init__(
        self, make: Callable[[int, int], CacheMemory], drop: Callable[[CacheMemory], None]
    ) -> None:
        """Begin with none.

        Args:
            make: Takes memory for rows and capacity; BackendError where there is none.
            drop: Told of memory that is let go.
        """
        self._make, self.drop = make, drop
        # Re-entrant: a stream that is collected in here gives its cache back.
        self._lock = threading.RLock()
        self._spare: list[CacheMemory] = []

    def take(self, rows: int, capacity: int) -> CacheMemory:
        """A spare cache that is large enough, or a new one, for which all spare ones may have to go.

        Raises:
            BackendError: No memory for it.
        """
        with self._lock:
            fitting = [one for one in self._spare if one.rows == rows and one.capacity >= capacity]
            if fitting:
                memory = min(fitting, key=lambda one: one.capacity)
                self._spare.remove(memory)
                return memory
            try:
                return self._make(rows, capacity)
            except BackendError:
                if not self._spare:
                    raise
                for memory in self._spare:
                    self.drop(memory)
                self._spare.clear()
            return self._make(rows, capacity)

    def give_back(self, memory: CacheMemory) -> None:
        """Keep a cache for the next sequences; the smallest goes where enough are kept."""
        with self._lock:
            self._spare = sorted([*self._spare, memory], key=lambda one: one.capacity)
            alike = [one for one in self._spare if one.rows == memory.rows]
            if len(alike) > (SPARE if memory.rows == 1 else 1):
                self._spare.remove(alike[0])
                self.drop(alike[0])
