"""How far a run over a data set is, on standard error."""

import contextlib
import datetime
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence

from foveate.terminal import Progress, note

LINE_SECONDS = 10.0
TICK = 0.1


class Meter:
    """Counts records: one line on a terminal, elsewhere one every ten seconds."""

    def __init__(self, outcomes: Sequence[str], quiet: bool = False) -> None:
        """Show nothing yet, or never.

        Args:
            outcomes: What can come of a record, in the order in which they are shown.
            quiet: Never show anything.
        """
        self._names = tuple(outcomes)
        self._quiet = quiet
        self._terminal = not quiet and sys.stderr.isatty()
        self._outcomes: Counter[str] = Counter()
        self._total, self._processes = 0, 1
        self._began = self._shown = 0.0

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
        self._began = self._shown = time.monotonic()

    def step(self, outcome: str) -> None:
        """Count one record."""
        self._outcomes[outcome] += 1
        last = self._outcomes.total() == self._total
        since = time.monotonic() - self._shown
        if not self._quiet and (last or since >= (TICK if self._terminal else LINE_SECONDS)):
            self._show(end=last)

    def stop(self, remark: str) -> None:
        """Say what an interrupted run leaves."""
        if self._quiet:
            return
        if self._terminal:
            note("")
        note(remark)

    def line(self, now: float) -> str:
        """How far the run is: 34/136, 2.4 samples/s, 0:00:42 left, 20 kept, 14 wrong, 0 unreadable."""
        done = self._outcomes.total()
        rate = done / max(now - self._began, 1e-9)
        left = datetime.timedelta(seconds=round((self._total - done) / rate)) if rate else "?"
        counts = ", ".join(f"{self._outcomes[name]} {name}" for name in self._names)
        several = f" (of each of {self._processes} processes)" if self._processes > 1 else ""
        return f"{done}/{self._total}, {rate:.1f} samples/s, {left} left, {counts}{several}"

    def _show(self, end: bool) -> None:
        """Write the line, over the one before on a terminal."""
        self._shown = time.monotonic()
        line = self.line(self._shown)
        if not self._terminal:
            note(line)
            return
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r{line[:width].ljust(width)}" + "\n" * end)
        sys.stderr.flush()
