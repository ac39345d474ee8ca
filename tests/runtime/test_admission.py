"""Who may run: first come, first served, so many at once; what waits, what is refused, what closing does."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from foveate.errors import BusyError, ClosedError, LimitError
from foveate.runtime.admission import Admission
from foveate.runtime.request_check import check_loading
from foveate.runtime.stopping import Stop

SOON = 10.0
"""Seconds after which a test gives up on another thread."""


def until(true: Callable[[], bool]) -> None:
    """Wait for another thread."""
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


class Gate:
    """An admission whose line can be watched."""

    def __init__(self, most: int | None, waiting: int | None = None) -> None:
        self.freed = 0
        self.admission = Admission(most, waiting, self.free)
        self.order: list[str] = []
        self.refused: list[Exception] = []
        self.threads: list[threading.Thread] = []

    def free(self) -> None:
        self.freed += 1

    def come(self, name: str, count: int = 1, *stops: Stop) -> None:
        """Another thread enters, notes its name and leaves; returns when it stands in line."""

        def enter() -> None:
            try:
                place = self.admission.enter(count, stops)
            except (BusyError, ClosedError) as error:
                self.refused.append(error)
                return
            self.order.append(name if place else f"{name} cancelled")
            if place:
                place.leave()

        waiting = len(self.admission._line)
        self.threads.append(threading.Thread(target=enter))
        self.threads[-1].start()
        until(lambda: len(self.admission._line) == waiting + 1)

    def end(self) -> None:
        """Wait until all have come and gone."""
        for thread in self.threads:
            thread.join(SOON)
            assert not thread.is_alive()


def entered(admission: Admission, count: int = 1) -> Any:
    """A place that is there at once."""
    place = admission.enter(count)
    assert place is not None
    return place


def test_the_line_is_served_in_the_order_of_coming() -> None:
    gate = Gate(2)
    first, second = entered(gate.admission), entered(gate.admission)
    gate.come("a")
    gate.come("a batch of two", 2)
    gate.come("c")
    first.leave()
    # One place is free for "c", which does not overtake the batch.
    until(lambda: gate.order == ["a"])
    time.sleep(0.01)
    assert gate.order == ["a"]
    second.leave()
    second.leave()
    gate.end()
    assert gate.order == ["a", "a batch of two", "c"]
    assert gate.admission._running == 0


def test_too_many_waiting_are_refused_at_once() -> None:
    gate = Gate(1, 1)
    with entered(gate.admission):
        gate.come("waits")
        for count in (1, 2):
            with pytest.raises((BusyError, LimitError), match="most_requests"):
                gate.admission.enter(count)
    gate.end()
    assert gate.order == ["waits"]
    none = Admission(1, 0, gate.free)
    with entered(none), pytest.raises(BusyError, match="1 requests run and 0 wait"):
        none.enter()
    entered(none)


def test_a_deadline_ends_the_wait() -> None:
    gate = Gate(1)
    with entered(gate.admission):
        began = time.perf_counter()
        with pytest.raises(BusyError, match="deadline passed while 1 other"):
            gate.admission.enter(1, [Stop(began + 0.03)])
        assert 0.03 <= time.perf_counter() - began < SOON
        # A batch goes on waiting for those of it that may still run.
        gate.come("batch", 1, Stop(began), Stop(began + SOON))
    gate.end()
    assert gate.order == ["batch"]


def test_who_is_cancelled_leaves_the_line() -> None:
    gate, event = Gate(1), threading.Event()
    with entered(gate.admission):
        gate.come("first", 1, Stop(None, event))
        gate.come("second")
        event.set()
        until(lambda: gate.order == ["first cancelled"])
    gate.end()
    assert gate.order == ["first cancelled", "second"]


def test_closing_turns_the_line_away_and_frees_after_the_last() -> None:
    gate = Gate(1)
    place = entered(gate.admission)
    gate.come("late")
    gate.admission.close()
    gate.end()
    assert [type(one) for one in gate.refused] == [ClosedError]
    assert gate.freed == 0
    with pytest.raises(ClosedError, match="load the bundle again"):
        gate.admission.enter()
    place.leave()
    gate.admission.close()
    assert gate.freed == 1


def test_many_threads_never_run_more_than_may() -> None:
    admission, lock = Admission(3, None, lambda: None), threading.Lock()
    running, most = 0, 0

    def work() -> None:
        nonlocal running, most
        for count in (1, 3, 2, 1):
            with entered(admission, count):
                with lock:
                    running += count
                    most = max(most, running)
                time.sleep(0.0005)
                with lock:
                    running -= count

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert (running, most, admission._running, len(admission._line)) == (0, 3, 0, 0)


@pytest.mark.parametrize(
    "limits", [(0, None), (-1, None), (True, None), (1.5, None), ("2", None), (1, -1), (1, "all"), (None, 3)]
)  # fmt: skip
def test_limits_that_are_none(limits: tuple[Any, Any]) -> None:
    with pytest.raises(LimitError, match="most_"):
        check_loading(most_requests=limits[0], most_waiting=limits[1])
