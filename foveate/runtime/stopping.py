"""When an answer ends before its time: at a deadline, or because somebody cancelled it."""

import time
from typing import Literal, Protocol, runtime_checkable

Early = Literal["deadline", "cancelled"]
"""Why an answer ended early."""


@runtime_checkable
class Flag(Protocol):
    """What another thread sets to cancel a request, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """Whether it was set."""
        ...


class Stop:
    """Says whether one request has to end, and why; what it once said it says for good."""

    __slots__ = ("_cancelled", "_flag", "_reason", "deadline")

    def __init__(self, deadline: float | None = None, flag: Flag | None = None) -> None:
        """Begin with nothing cancelled.

        Args:
            deadline: The `time.perf_counter()` at which the request ends.
            flag: What cancels it when it is set.
        """
        self.deadline, self._flag = deadline, flag
        self._cancelled = False
        self._reason: Early | None = None

    @classmethod
    def of(cls, seconds: float | None, flag: Flag | None, began: float) -> "Stop":
        """A request's, from what its caller gave.

        Args:
            seconds: From the call to the deadline; None for no deadline.
            flag: The request's `cancel`.
            began: `time.perf_counter()` at the call.
        """
        return cls(None if seconds is None else began + seconds, flag)

    @property
    def watched(self) -> bool:
        """Whether it may be cancelled without a word, so that it has to be asked again and again."""
        return self._flag is not None

    def cancel(self) -> None:
        """End the request; from any thread."""
        self._cancelled = True

    def reason(self) -> Early | None:
        """Why the request has to end now; None where it may go on."""
        if self._reason is None:
            if self._cancelled or (self._flag is not None and self._flag.is_set()):
                self._reason = "cancelled"
            elif self.deadline is not None and time.perf_counter() >= self.deadline:
                self._reason = "deadline"
        return self._reason
