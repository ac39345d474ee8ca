"""The process that the command line runs in: its standard streams, and the signals that end it."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO, cast

from foveate.errors import OutputError

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = "interrupted; nothing was left half-written"
TERMINATED = "terminated; nothing was left half-written"
CODE = 128 + signal.SIGINT
ENDING = ("SIGTERM", "SIGHUP")
"""The signals that end a process which does nothing about them, so that it leaves what it was writing."""


class Terminated(KeyboardInterrupt):
    """A signal to end, raised so that what was being written is removed; `code` is the exit code."""

    def __init__(self, number: int) -> None:
        """Name the signal."""
        super().__init__(number)
        self.code = 128 + number


class Forgiving(io.FileIO):
    """A file for remarks, where one that cannot be written is lost and no error."""

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """Write what can be written."""
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)


class Results(io.FileIO):
    """A file for results, where one that cannot be written is an error in words."""

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """Write, or raise OutputError where it fails for another reason than a reader that has gone."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(
                f"the result could not be written to standard output: {error.strerror or error}"
            ) from None


def open_streams() -> None:
    """Make standard streams safe: no file that is opened takes a closed one's number, and no remark fails.

    Standard output that is closed stays None: results cannot be lost.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is not None and sys.stdout is sys.__stdout__:
        sys.stdout = _text(Results(1, "w", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(Forgiving(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, former: TextIO | None) -> io.TextIOWrapper:
    """Text to a file, written at the end of each line, where what the encoding lacks is escaped."""
    encoding = "utf-8" if former is None else former.encoding
    buffered = io.BufferedWriter(cast("io.RawIOBase", raw))
    return io.TextIOWrapper(buffered, encoding, "backslashreplace", line_buffering=True)


def forget_stdout() -> None:
    """Lose what standard output did not take, which Python would try to write once more at its end."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if sys.stdout.fileno() == 1:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextlib.contextmanager
def signals_raised() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C, and Terminated for signals to end that nobody handles yet."""
    handlers = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(_ending(), _terminate)}
    before = {}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        del handlers[signal.SIGINT]
    for number, handler in handlers.items():
        if number == signal.SIGINT or signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _ending() -> list[signal.Signals]:
    """The signals of `ENDING` that this system has."""
    return [signal.Signals[name] for name in ENDING if name in signal.Signals.__members__]


def _terminate(number: int, _: "FrameType | None") -> None:
    """Raise Terminated."""
    raise Terminated(number)
