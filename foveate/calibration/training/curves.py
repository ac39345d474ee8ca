"""Training's curves: events that TensorBoard follows, and a picture of them."""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from foveate.atomic_write import writing
from foveate.calibration.ranking import RATIOS
from foveate.calibration.training.outputs import RUNS, events
from foveate.calibration.training.result import Epoch, TrainingResult
from foveate.errors import needed

with needed(
    "training draws its curves with matplotlib and tensorboard, which are not both installed: "
    "pip install 'foveate[calibrate]'"
):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from torch.utils.tensorboard import SummaryWriter

COLOURS = ("#1b6ca8", "#d1495b", "#3c8d40")
SIZE = (11.0, 4.5)
DPI = 120


class Events(AbstractContextManager["Events"]):
    """Event files for TensorBoard, one run a line, so that references stand in the same charts."""

    def __init__(
        self, folder: Path, references: Mapping[str, Sequence[float]], history: Iterable[Epoch]
    ) -> None:
        """Write anew what `history` holds, in place of the events that are there.

        Args:
            folder: Has a folder for each of `RUNS`.
            references: The overlaps of "attention" and of "random", which no epoch changes.
            history: The epochs so far.
        """
        self._references = references
        with writing(folder):
            for path in events(folder):
                path.unlink()
            self._writers = {name: SummaryWriter(str(folder / name)) for name in RUNS}
        for epoch in history:
            self.add(epoch)

    def add(self, epoch: Epoch) -> None:
        """Add an epoch's points."""
        with writing(self._writers["train"].log_dir):
            self._writers["train"].add_scalar("KL", epoch.train_kl, epoch.number)
            self._writers["validation"].add_scalar("KL", epoch.validation_kl, epoch.number)
            for run, values in {"validation": epoch.overlaps, **self._references}.items():
                for ratio, value in zip(RATIOS, values, strict=True):
                    tag = f"overlap of top {ratio:.0%}"
                    self._writers[run].add_scalar(tag, value, epoch.number)
            for writer in self._writers.values():
                writer.flush()

    def __exit__(self, *error: object) -> None:
        """Close the files."""
        with contextlib.suppress(OSError):
            for writer in self._writers.values():
                writer.close()


def draw_curves(result: TrainingResult) -> Figure:
    """Loss on the left, overlaps with their references on the right."""
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    figure.suptitle(f"f_θ trained on {result.trained_on}")
    loss, overlaps = figure.subplots(1, 2)
    numbers = [epoch.number for epoch in result.history]
    marker = "o" if len(numbers) == 1 else ""
    for name, values, colour in (
        ("training", [epoch.train_kl for epoch in result.history], "#888888"),
        ("validation", [epoch.validation_kl for epoch in result.history], COLOURS[0]),
    ):
        loss.plot(numbers, values, color=colour, marker=marker, label=name)
    loss.set(title="Loss (Eq. 3)", ylabel="KL(R_v* ‖ f_θ) [nats]")
    for index, (ratio, colour) in enumerate(zip(RATIOS, COLOURS, strict=True)):
        values = [100 * epoch.overlaps[index] for epoch in result.history]
        overlaps.plot(numbers, values, color=colour, marker=marker, label=f"f_θ, top {ratio:.0%}")
        overlaps.axhline(100 * result.attention[index], color=colour, linestyle="--", alpha=0.7)
        overlaps.axhline(100 * result.chance[index], color=colour, linestyle=":", alpha=0.7)
    overlaps.plot([], [], color="#555555", linestyle="--", label="A_v⁰ itself")
    overlaps.plot([], [], color="#555555", linestyle=":", label="random")
    overlaps.set(title="Overlap with R_v on validation", ylim=(0, 100))
    overlaps.set_ylabel("top-k in common [%]")
    kept = result.best.number
    for axes in (loss, overlaps):
        axes.axvline(kept, color="#bbbbbb", linewidth=1, zorder=0, label=f"kept: epoch {kept}")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(fontsize="small", framealpha=0.9)
    return figure


def curves_png(result: TrainingResult) -> bytes:
    """The curves as a PNG."""
    data = io.BytesIO()
    draw_curves(result).savefig(data, format="png")
    return data.getvalue()
