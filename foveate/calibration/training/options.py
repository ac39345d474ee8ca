"""What the user chooses of a training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foveate.bundle.words import Words
from foveate.calibration.training.labels import LabelKind
from foveate.errors import DataError
from foveate.modeling.f_theta import Inputs, Scaling

DECISIVE = ("epochs", "batch", "seed", "validation", "inputs", "scaling", "words", "label")
"""The options that decide the weights."""


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """What the user chooses; the defaults are the paper's.

    Attributes:
        epochs: How often every training sample is seen.
        batch: Samples for each step of Adam.
        seed: Of weights, order and split; the same seed gives the same weights on one machine's CPU.
        validation: The share of pictures to validate on, in (0, 1).
        inputs: "mean" reads A_v⁰, "heads" reads each head's attention apart.
        scaling: See `SCALINGS`.
        words: How the instruction's tokens are weighed; see `WordWeights`.
        label: "relevance", or "contrast" with that of the other questions about the same pictures.
        device: "auto" takes a CUDA GPU where there is one.
        plot: The curves as a PNG; None takes `out` with the suffix .png.
        log_dir: The curves for TensorBoard; None takes `out` with the suffix .tensorboard.
        force: Replace what is there, and begin anew where another training was interrupted.
    """

    epochs: int = 100
    batch: int = 128
    seed: int = 0
    validation: float = 0.1
    inputs: Inputs = "mean"
    scaling: Scaling = "none"
    words: Words = "mean"
    label: LabelKind = "relevance"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    plot: Path | None = None
    log_dir: Path | None = None
    force: bool = False

    def decisive(self) -> dict[str, str]:
        """Those that decide the weights, as text."""
        return {name: str(getattr(self, name)) for name in DECISIVE}

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            DataError: One of them is out of range.
        """
        if self.epochs < 1 or self.batch < 1 or self.seed < 0:
            raise DataError("epochs and batch must be at least 1, and the seed at least 0")
        if not 0 < self.validation < 1:
            raise DataError(f"validation is {self.validation}; give a share of pictures in (0, 1)")
        if self.inputs == "heads" and self.words != "mean":
            raise DataError(
                "relevance maps hold the attention of single words averaged over heads, so heads apart go with "
                "words that all count alike: give --inputs mean, or --words mean"
            )
