"""A training under way: epochs of Adam on KL(R_v* ‖ softmax(f_θ(A_v⁰))) (paper, Eq. 3)."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import kl_div

from foveate.calibration.ranking import overlap_at_ratios
from foveate.calibration.training.examples import Examples, Pack, packs, pooled_anew, split
from foveate.calibration.training.options import TrainingOptions
from foveate.calibration.training.result import Epoch
from foveate.calibration.training.state import TrainingState
from foveate.errors import DataError
from foveate.modeling.f_theta import FTheta

SLOPES_RATE = 0.03
"""Adam's learning rate for the few slopes that weigh words, which have far to go."""


@dataclass(frozen=True, slots=True)
class Status:
    """How far training is.

    Attributes:
        epoch: The epoch under way, from 1.
        epochs: How many there will be.
        seen: Training samples seen in this epoch.
        total: Training samples of an epoch.
        rate: Samples a second.
        left: Seconds left, about.
        last: The last whole epoch.
    """

    epoch: int
    epochs: int
    seen: int
    total: int
    rate: float
    left: float
    last: Epoch | None


Progress = Callable[[Status], None]
"""Called after every step."""


class Run:
    """A network, its optimizer and its examples."""

    def __init__(self, data: Examples, options: TrainingOptions, device: torch.device) -> None:
        """Split the examples, and draw the first weights.

        Raises:
            DataError: All examples share a picture.
        """
        self.training, self.validation = split(data.all, options.validation, options.seed)
        self.options = options
        self.device = device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.network = FTheta(data.channels_in, options.scaling, options.words).to(device)
        slopes = list(self.network.words.parameters())
        weights = [one for one in self.network.parameters() if all(one is not s for s in slopes)]
        groups: list[dict[str, Any]] = [{"params": weights}]
        if slopes:
            groups.append({"params": slopes, "lr": SLOPES_RATE})
        self.optimizer = torch.optim.Adam(groups)

    def epochs(self, state: TrainingState, progress: Progress) -> Iterator[Epoch]:
        """Train the epochs that `state` lacks; it is up to date as each is yielded."""
        if state.history:
            self.network.load_state_dict(state.weights)
            self.optimizer.load_state_dict(state.optimizer)
        lowest = min((epoch.validation_kl for epoch in state.history), default=math.inf)
        epochs, total, before = self.options.epochs, len(self.training), len(state.history)
        start = time.perf_counter()

        def tell(seen: int) -> None:
            done = len(state.history) * total + seen
            rate = (done - before * total) / max(time.perf_counter() - start, 1e-9)
            left = (epochs * total - done) / rate
            last = state.history[-1] if state.history else None
            progress(Status(len(state.history) + 1, epochs, seen, total, rate, left, last))

        for number in range(before + 1, epochs + 1):
            began = time.perf_counter()
            train_kl = self.train(number, tell)
            epoch = Epoch(number, train_kl, *self.validate())
            if not math.isfinite(epoch.train_kl + epoch.validation_kl):
                raise DataError(
                    f"the loss is not finite in epoch {number}; make the relevance maps anew, or "
                    "train with another --seed"
                )
            state.weights = copied(self.network.state_dict())
            state.optimizer = self.optimizer.state_dict()
            if epoch.validation_kl < lowest:
                lowest, state.best = epoch.validation_kl, state.weights
            state.history.append(epoch)
            state.seconds += time.perf_counter() - began
            yield epoch

    def train(self, number: int, tell: Callable[[int], None]) -> float:
        """One epoch in its own order; the mean KL of its samples as they were seen."""
        self.network.train()
        order = np.random.default_rng([self.options.seed, number]).permutation(len(self.training))
        total = 0.0
        for start in range(0, len(order), self.options.batch):
            batch = [self.training[index] for index in order[start : start + self.options.batch]]
            self.optimizer.zero_grad()
            for pack in packs(pooled_anew(self.network, batch)):
                loss, _ = self.divergence(pack)
                (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            self.optimizer.step()
            tell(start + len(batch))
        return total / len(order)

    @torch.no_grad()
    def validate(self) -> tuple[float, tuple[float, ...]]:
        """Mean KL and mean overlaps of the validation samples."""
        self.network.eval()
        total = 0.0
        predicted: list[Tensor] = []
        for pack in packs(pooled_anew(self.network, self.validation)):
            loss, logs = self.divergence(pack)
            total += loss.item()
            predicted += [row[inside] for row, inside in zip(logs.cpu(), pack.inside, strict=True)]
        overlaps = mean(
            overlap_at_ratios(row.numpy(), example.relevance)
            for row, example in zip(predicted, self.validation, strict=True)
        )
        return total / len(self.validation), overlaps

    def divergence(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """KL(R_v* ‖ softmax(f_θ)) summed over a pack's samples, and the log-probabilities [B, N]."""
        pack = pack.to(self.device)
        logs = pack.log_softmax(self.network.convolve_masked(pack.features, pack.mask))
        return kl_div(logs, pack.labels, reduction="sum"), logs


def mean(rows: Iterable[NDArray[np.float64]]) -> tuple[float, ...]:
    """Rows of figures averaged."""
    return tuple(float(value) for value in np.mean(list(rows), axis=0))


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights on the CPU that later steps do not change."""
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}
