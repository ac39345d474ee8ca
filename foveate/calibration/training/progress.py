"""Training's progress on standard error: a live line on a terminal, a line now and then elsewhere."""

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType

import click

from foveate.calibration.training.run import Standing

TERMINAL_SECONDS = 0.1
LOG_SECONDS = 10.0


class TrainingProgress(AbstractContextManager["TrainingProgress"]):
    """Called with each `Standing`; shows epoch, KL, overlap, rate and time left."""

    def __init__(self) -> None:
        """Show nothing until the first call."""
        self._terminal = sys.stderr.isatty()
        self._width = 0
        self._shown = 0.0
        self._latest = ""

    def __call__(self, standing: Standing) -> None:
        """Show how far training is, if it is time to."""
        self._latest = line(standing)
        if time.monotonic() - self._shown >= (TERMINAL_SECONDS if self._terminal else LOG_SECONDS):
            self._show()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Show the last line, and how to go on where training was cut short."""
        if self._latest:
            self._show()
            if self._terminal:
                click.echo(err=True)
            if kind is KeyboardInterrupt:
                click.echo("the same command goes on after the last whole epoch", err=True)

    def _show(self) -> None:
        self._shown = time.monotonic()
        if self._terminal:
            click.echo(f"\r{self._latest.ljust(self._width)}", nl=False, err=True)
            self._width = len(self._latest)
        else:
            click.echo(self._latest, err=True)


def line(standing: Standing) -> str:
    """One line of progress."""
    parts = [f"epoch {standing.epoch}/{standing.epochs}, {standing.seen / standing.total:.0%}"]
    if standing.last:
        overlaps = "/".join(f"{100 * value:.0f}" for value in standing.last.overlaps)
        parts.append(
            f"KL {standing.last.train_kl:.4f}, validation {standing.last.validation_kl:.4f}, "
            f"overlap {overlaps} %"
        )
    minutes, seconds = divmod(round(standing.left), 60)
    parts.append(f"{standing.rate:,.0f} samples/s, {minutes}:{seconds:02d} left")
    return "; ".join(parts)
