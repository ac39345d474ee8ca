"""Who may run: so many requests at once, the others in line; and nobody once the pipeline is closed."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from foveate.errors import BusyError, ClosedError, LimitError
from foveate.runtime.stopping import Stop

LOOK = 0.02
"""Seconds after which those in line look again whether they were cancelled."""


class Place(AbstractContextManager["Place"]):
    """What lets requests run until it is left; leaving twice is fine."""

    def __init__(self, admission: "Admission", count: int) -> None:
        """Hold the place of `count` requests."""
        self._admission, self._count = admission, count

    def leave(self) -> None:
        """Let the next in line run."""
        count, self._count = self._count, 0
        if count:
            self._admission.leave(count)

    def __exit__(self, *exception: object) -> None:
        """Leave."""
        self.leave()


class Admission:
    """Lets requests run in the order in which they came, and frees what they run on after the last.

    Nobody overtakes: a batch waits until there is room for all of it, and whoever came later waits for the
    batch.
    """

    def __init__(
        self, most_requests: int | None, most_waiting: int | None, free: Callable[[], None]
    ) -> None:
        """Begin with nobody.

        Args:
            most_requests: How many run at once; None for any number.
            most_waiting: How many may wait for them; None for any number.
            free: Called once, when it was closed and nobody runs any more.
        """
        self._most, self._waiting, self._free = most_requests, most_waiting, free
        # Its lock is re-entrant: a stream that is collected in here leaves its place.
        self._changed = threading.Condition()
        self._line: dict[object, int] = {}
        self._running = 0
        self._closed = self._freed = False

    def enter(self, count: int = 1, stops: Sequence[Stop] = ()) -> Place | None:
        """Wait for the place of `count` requests.

        Args:
            count: How many run together.
            stops: They end the wait when all of them have ended.

        Returns:
            The place; None where all were cancelled before there was one.

        Raises:
            BusyError: Too many wait already, or a deadline passed while waiting.
            LimitError: More at once than ever run together.
            ClosedError: The pipeline was closed.
        """
        if self._most is not None and count > self._most:
            raise LimitError(
                f"{count} requests were asked at once and the pipeline runs {self._most} "
                f"(most_requests); ask {self._most} at a time"
            )
        with self._changed:
            self._check_open()
            if (self._line or not self._fits(count)) and not self._wait(count, stops):
                return None
            self._running += count
            return Place(self, count)

    def leave(self, count: int) -> None:
        """Take back the place of `count` requests; the last one out frees what they ran on."""
        with self._changed:
            self._running -= count
            self._changed.notify_all()
        self._free_after_last()

    def close(self) -> None:
        """Let nobody in any more: those in line get a ClosedError, those who run go on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._free_after_last()

    def _wait(self, count: int, stops: Sequence[Stop]) -> bool:
        """Stand in line until there is room; False where all were cancelled before."""
        waiting = sum(self._line.values())
        if self._waiting is not None and waiting + count > self._waiting:
            raise BusyError(
                f"{self._running} requests run and {waiting} wait, of {self._most} and {self._waiting} that "
                "may; ask again later, or load the pipeline with a higher most_requests or most_waiting"
            )
        ticket = object()
        self._line[ticket] = count
        try:
            while next(iter(self._line)) is not ticket or not self._fits(count):
                reasons = [stop.reason() for stop in stops]
                if reasons and all(reasons):
                    if "deadline" in reasons:
                        raise BusyError(
                            f"the deadline passed while {self._running} other requests ran; ask again "
                            "later, or with a longer deadline"
                        )
                    return False
                self._changed.wait(patience(stops))
                self._check_open()
            return True
        finally:
            del self._line[ticket]
            self._changed.notify_all()

    def _fits(self, count: int) -> bool:
        """Whether there is room for `count` more."""
        return self._most is None or self._running + count <= self._most

    def _check_open(self) -> None:
        """ClosedError after `close`."""
        if self._closed:
            raise ClosedError("the pipeline is closed; load the bundle again")

    def _free_after_last(self) -> None:
        """Free what requests run on, once, when it was closed and nobody runs."""
        with self._changed:
            last = self._closed and not self._running and not self._freed
            self._freed |= last
        if last:
            self._free()


def patience(stops: Sequence[Stop]) -> float | None:
    """Seconds until one of them may end; None where only the line can change."""
    going = [stop for stop in stops if stop.reason() is None]
    if any(stop.watched for stop in going):
        return LOOK
    ends = [stop.deadline for stop in going if stop.deadline is not None]
    return max(min(ends) - time.perf_counter(), 0.0) if ends else None
