"""Training's progress: epoch, loss, overlap, rate and time left in one line."""

from contextlib import AbstractContextManager

from foveate.calibration.progress import ProgressLine
from foveate.calibration.training.run import Status


class TrainingProgress(AbstractContextManager["TrainingProgress"]):
    """Called with each `Status`; shows it on standard error when that is due."""

    def __init__(self) -> None:
        """Show nothing until the first call."""
        self._line = ProgressLine()
        self._latest = ""

    def __call__(self, status: Status) -> None:
        """Show how far training is, if it is time to."""
        self._latest = line(status)
        if self._line.due:
            self._line.show(self._latest)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Show the last line, and how to go on where training was cut short."""
        if self._latest:
            self._line.show(self._latest)
            self._line.end()
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                self._line.remark("the same command goes on after the last whole epoch")


def line(status: Status) -> str:
    """One line of progress."""
    parts = [f"epoch {status.epoch}/{status.epochs}, {status.seen / status.total:.0%}"]
    if status.last:
        overlaps = "/".join(f"{100 * value:.0f}" for value in status.last.overlaps)
        parts.append(
            f"KL {status.last.train_kl:.4f}, validation {status.last.validation_kl:.4f}, "
            f"overlap {overlaps} %"
        )
    minutes, seconds = divmod(round(status.left), 60)
    parts.append(f"{status.rate:,.0f} samples/s, {minutes}:{seconds:02d} left")
    return "; ".join(parts)
