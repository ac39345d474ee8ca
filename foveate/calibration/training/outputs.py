"""What a training writes and where; needs no torch, so that what is in the way is said at once."""

from dataclasses import dataclass
from pathlib import Path

from foveate.atomic_write import EXISTS, check_file
from foveate.errors import OutputError, OutputExistsError

EVENTS = "events.out.tfevents.*"
RUNS = ("train", "validation", "attention", "random")


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a training.

    Attributes:
        weights: f_θ, a safetensors file.
        plot: The curves as a PNG; None takes `weights` with the suffix .png.
        log_dir: The curves for TensorBoard; None takes `weights` with the suffix .tensorboard.
    """

    weights: Path
    plot: Path
    log_dir: Path

    @classmethod
    def of(cls, weights: Path, plot: Path | None, log_dir: Path | None) -> "Outputs":
        """The outputs that the user chose, and beside the weights those that were left open."""
        return cls(
            weights,
            plot or weights.with_suffix(".png"),
            log_dir or weights.with_suffix(".tensorboard"),
        )

    @property
    def state(self) -> Path:
        """Where the training stands, while it lasts."""
        return self.weights.with_name(f"{self.weights.name}.state")

    def check(self, *, force: bool) -> None:
        """Say early what cannot be written.

        Where a training was interrupted, outputs may be there that it wrote itself: its state tells.

        Raises:
            OutputExistsError: An output is there, and `force` was not given.
            OutputError: An output could not be written.
        """
        if self.weights.absolute() == self.plot.absolute():
            raise OutputError(
                f"{self.weights}: f_θ and its curves need two files; give another --plot"
            )
        interrupted = self.state.exists()
        for path in (self.weights, self.plot):
            check_file(path, force=force or (interrupted and path.is_file()))
        if events(self.log_dir) and not force and not interrupted:
            raise OutputExistsError(
                f"{self.log_dir}, with the curves of another training, {EXISTS}"
            )


def events(folder: Path) -> list[Path]:
    """The event files of an earlier training in `folder`."""
    return [path for run in RUNS for path in (folder / run).glob(EVENTS)]
