"""What training gave: its figures by epoch, and what people, JSON and the file's header say of them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate.calibration.ranking import RATIOS
from foveate.terminal import plural, table


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch's figures.

    Attributes:
        number: From 1.
        train_kl: Eq. 3 averaged over the training samples, in nats, as they were seen.
        validation_kl: Eq. 3 averaged over the validation samples, in nats.
        overlaps: Validation overlap of top-k(f_θ) with top-k(R_v) for each of `RATIOS`.
    """

    number: int
    train_kl: float
    validation_kl: float
    overlaps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A trained f_θ.

    Attributes:
        path: The safetensors file.
        trained_on: The checkpoint, the mode of its relevance, the number of samples.
        history: Every epoch, in order.
        attention: Validation overlap of A_v⁰ itself, for each of `RATIOS`.
        chance: What a random ranking would overlap, for each of `RATIOS`.
        training: Samples trained on.
        validation: Samples validated on.
        skipped: Samples without usable relevance or attention.
        seconds: How long the epochs took, over all sittings.
        plot: The curves as a PNG.
        log_dir: The curves for TensorBoard.
    """

    path: Path
    trained_on: str
    history: list[Epoch]
    attention: tuple[float, ...]
    chance: tuple[float, ...]
    training: int
    validation: int
    skipped: int
    seconds: float
    plot: Path
    log_dir: Path

    @property
    def best(self) -> Epoch:
        """The epoch whose weights were kept: the first of the lowest validation KL."""
        return min(self.history, key=lambda epoch: epoch.validation_kl)

    @property
    def last(self) -> Epoch:
        """The last epoch."""
        return self.history[-1]

    def figures(self) -> dict[str, float]:
        """Of the weights that were kept: what the file's header and a bundle's manifest hold."""
        return {
            "validation_kl": self.best.validation_kl,
            **_named("overlap", self.best.overlaps),
            "epochs": self.last.number,
            "best_epoch": self.best.number,
            "samples": self.training,
            "validation_samples": self.validation,
            "seconds": round(self.seconds, 1),
        }

    def background(self) -> dict[str, float]:
        """What to hold the figures against: the last epoch, A_v⁰ itself, a random ranking."""
        return {
            "last.train_kl": self.last.train_kl,
            "last.validation_kl": self.last.validation_kl,
            **_named("last.overlap", self.last.overlaps),
            **_named("attention.overlap", self.attention),
            **_named("random.overlap", self.chance),
            "skipped_samples": self.skipped,
        }


def training_facts(result: TrainingResult) -> dict[str, Any]:
    """For JSON."""
    return {
        "f_theta": str(result.path),
        "trained_on": result.trained_on,
        "figures": result.figures(),
        "background": result.background(),
        "ratios": list(RATIOS),
        "history": [asdict(epoch) for epoch in result.history],
        "plot": str(result.plot),
        "log_dir": str(result.log_dir),
    }


def describe_training(result: TrainingResult) -> str:
    """For people."""
    best, last = result.best, result.last
    kept = (("f_θ", best.overlaps), ("A_v⁰", result.attention), ("random", result.chance))
    rows = [
        ("overlap with R_v", *(f"top {ratio:.0%}" for ratio in RATIOS)),
        *((name, *(f"{value:.3f}" for value in values)) for name, values in kept),
    ]
    skipped = f", {plural(result.skipped, 'sample')} skipped" if result.skipped else ""
    return (
        f"{result.path}: trained on {result.trained_on}{skipped}\n"
        f"  validation KL {best.validation_kl:.4f} at epoch {best.number}, which was kept "
        f"(epoch {last.number}: {last.validation_kl:.4f}); "
        f"{plural(result.validation, 'validation sample')}, no picture of training in them\n"
        f"{table(rows)}\n"
        f"  curves: {result.plot}, and TensorBoard: tensorboard --logdir {result.log_dir}"
    )


def _named(name: str, overlaps: tuple[float, ...]) -> dict[str, float]:
    """Overlaps by name and percentage."""
    names = (f"{name}_at_{ratio * 100:.0f}" for ratio in RATIOS)
    return dict(zip(names, overlaps, strict=True))
