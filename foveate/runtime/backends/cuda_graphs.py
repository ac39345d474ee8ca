"""Which calls become CUDA graphs: those that come again with the same shapes in the same memory."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from foveate.runtime.backends.buckets import Counts

GRAPH = TypeVar("GRAPH")


class CudaGraphs(Generic[GRAPH]):
    """One engine's CUDA graphs by key; a call is captured when it comes a second time.

    A graph holds addresses: its key must hold every shape, value and address that the call uses.

    Attributes:
        refusal: Why calls cannot be captured; None while they can.
        launched: How often a graph was used.
    """

    def __init__(self, most: int, free: Callable[[GRAPH], None] | None = None) -> None:
        """Hold no graph yet.

        Args:
            most: How many graphs are kept at once.
            free: Frees a graph, so that the one that was not used for longest makes room for another;
                None where a library cannot free them: no more are captured then.
        """
        self.most, self.free = most, free
        self.refusal: str | None = None
        self.launched = 0
        self._counts = Counts()
        self._graphs: OrderedDict[Hashable, GRAPH] = OrderedDict()

    def get(self, key: Hashable) -> GRAPH | None:
        """The graph to launch for a call; None where there is none."""
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            self.launched += 1
        return graph

    def wants(self, key: Hashable, capture: bool | None = None) -> bool:
        """Whether a call without a graph is to be captured now; remembers that it came.

        Args:
            key: The call's.
            capture: At once (True), never (False), or when it comes again (None).
        """
        if self.refusal is not None or (self.free is None and len(self._graphs) >= self.most):
            return False
        if capture is None:
            return self._counts.note(key) > 1
        return capture

    def put(self, key: Hashable, graph: GRAPH) -> None:
        """Keep a captured graph."""
        self._graphs[key] = graph
        while len(self._graphs) > self.most and self.free is not None:
            self.free(self._graphs.popitem(last=False)[1])

    def refuse(self, reason: str) -> None:
        """Capture nothing from now on, and let all graphs go."""
        self.refusal = reason
        self.clear()

    def drop(self, unwanted: Callable[[GRAPH], bool]) -> None:
        """Let go of some graphs."""
        for key, graph in list(self._graphs.items()):
            if unwanted(graph):
                del self._graphs[key]
                if self.free is not None:
                    self.free(graph)

    def clear(self) -> None:
        """Let go of all graphs."""
        self.drop(lambda graph: True)

    def __iter__(self) -> Iterator[GRAPH]:
        """The graphs, the one used last at the end."""
        return iter(self._graphs.values())

    def __len__(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)
