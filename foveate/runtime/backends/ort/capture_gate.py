"""Keeps other work on the GPU away while a CUDA graph is captured, which CUDA would refuse or break."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CaptureGate:
    """Many threads may work on the device at once, or one may capture; as a context, it is for work."""

    def __init__(self) -> None:
        """Begin with nobody in."""
        self._changed = threading.Condition()
        self._working, self._capturing = 0, False

    def __enter__(self) -> None:
        """Begin work on the device, when nobody captures."""
        with self._changed:
            while self._capturing:
                self._changed.wait()
            self._working += 1

    def __exit__(self, *exception: object) -> None:
        """End work."""
        with self._changed:
            self._working -= 1
            self._changed.notify_all()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Be alone with the device; not to be entered from within work."""
        with self._changed:
            while self._capturing:
                self._changed.wait()
            self._capturing = True
            while self._working:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


GATE = CaptureGate()
