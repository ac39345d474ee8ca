"""How far a long run is, on standard error: a live line on a terminal, a line now and then elsewhere."""

import contextlib
import datetime
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence

from foveate.terminal import CLEAR, Progress, note

LINE_SECONDS = 10.0
TICK = 0.1


class ProgressLine:
    """One line, rewritten in place on a terminal; elsewhere a new one every ten seconds."""

    def __init__(self, quiet: bool = False) -> None:
        """Show nothing yet, or never where `quiet`."""
        self._quiet = quiet
        self._terminal = not quiet and sys.stderr.isatty()
        self._shown = 0.0

    @property
    def due(self) -> bool:
        """Whether the line that is shown is old enough for another."""
        return time.monotonic() - self._shown >= (TICK if self._terminal else LINE_SECONDS)

    def wait(self) -> None:
        """Let the next line be due only after the usual time."""
        self._shown = time.monotonic()

    def show(self, text: str) -> None:
        """Show a line, on a terminal in place of the one before."""
        self.wait()
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r{CLEAR}{text[:width]}")
            sys.stderr.flush()
        else:
            self.remark(text)

    def end(self) -> None:
        """Leave the last line as it is: what is written next begins a new one."""
        if self._terminal:
            note("")

    def remark(self, text: str) -> None:
        """Write a line that stays."""
        if not self._quiet:
            note(text)


class Meter:
    """Counts the records of a run and shows how many came out how."""

    def __init__(self, outcomes: Sequence[str], quiet: bool = False) -> None:
        """Show nothing yet, or never.

        Args:
            outcomes: What can come of a record, in the order in which they are shown.
            quiet: Never show anything.
        """
        self._names = tuple(outcomes)
        self._quiet = quiet
        self._line = ProgressLine(quiet)
        self._outcomes: Counter[str] = Counter()
        self._total, self._processes = 0, 1
        self._began = 0.0

    def stage(self, name: str) -> contextlib.AbstractContextManager[object]:
        """Show that something is under way which cannot be counted."""
        if self._quiet:
            return contextlib.nullcontext()
        stages = Progress()
        stages.begin(name)
        return stages

    def start(self, total: int, processes: int) -> None:
        """Begin to count up to `total`, this process's share of the records."""
        self._total, self._processes = total, processes
        self._began = time.monotonic()
        self._line.wait()

    @property
    def seconds(self) -> float:
        """How long ago `start` was called; 0 before that."""
        return time.monotonic() - self._began if self._began else 0.0

    def step(self, outcome: str) -> None:
        """Count one record."""
        self._outcomes[outcome] += 1
        last = self._outcomes.total() == self._total
        if last or self._line.due:
            self._line.show(self.line(time.monotonic()))
        if last:
            self._line.end()

    def stop(self, remark: str) -> None:
        """Say what an interrupted run leaves."""
        self._line.end()
        self._line.remark(remark)

    def line(self, now: float) -> str:
        """How far the run is: 34/136, 2.4 samples/s, 0:00:42 left, 20 kept, 14 wrong, 0 unreadable."""
        done = self._outcomes.total()
        rate = done / max(now - self._began, 1e-9)
        left = datetime.timedelta(seconds=round((self._total - done) / rate)) if rate else "?"
        counts = ", ".join(f"{self._outcomes[name]} {name}" for name in self._names)
        several = f" (of each of {self._processes} processes)" if self._processes > 1 else ""
        return f"{done}/{self._total}, {rate:.1f} samples/s, {left} left, {counts}{several}"
