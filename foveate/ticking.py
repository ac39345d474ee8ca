"""Work done over and over in a thread of its own."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def ticking(seconds: float, work: Callable[[], object]) -> Iterator[None]:
    """Do some work every so many seconds until the block is left, and once more then."""
    done = threading.Event()

    def tick() -> None:
        """Work until the end."""
        while not done.wait(seconds):
            work()
        work()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
