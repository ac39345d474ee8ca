"""While one thread captures, no other works on the device."""

import threading
import time

from foveate.runtime.backends.ort.capture_gate import CaptureGate


def test_captures_are_alone_and_work_is_not() -> None:
    gate, faults = CaptureGate(), list[str]()
    working = captures = 0
    together = threading.Barrier(2, timeout=5)

    def work(number: int) -> None:
        nonlocal working
        for turn in range(50):
            with gate:
                working += 1
                if captures:
                    faults.append("work during a capture")
                if turn == 0 and number < 2:
                    together.wait()
                time.sleep(0.0002)
                working -= 1

    def capture() -> None:
        nonlocal captures
        for _ in range(20):
            with gate.capture():
                captures += 1
                if working or captures > 1:
                    faults.append("a capture beside work")
                time.sleep(0.0005)
                captures -= 1

    first = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in first:
        thread.start()
    others = [threading.Thread(target=capture), threading.Thread(target=capture)]
    others += [threading.Thread(target=work, args=(2,))]
    for thread in others:
        thread.start()
    for thread in (*first, *others):
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert faults == []
