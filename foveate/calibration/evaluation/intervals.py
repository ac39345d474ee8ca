"""95 % intervals: Wilson's of shares, and a paired bootstrap over pictures of everything else."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.959963984540054
RESAMPLES = 2000
TOGETHER = 1 << 20
"""Weights of a bootstrap that are held at once."""

KEY = TypeVar("KEY", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval.

    Attributes:
        n: How many questions it is of.
        value: The figure.
        low: The interval's lower end; None where a single picture leaves none.
        high: Its upper end.
    """

    n: int
    value: float
    low: float | None
    high: float | None


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of `right` in `n`, n ≥ 1."""
    share, square = right / n, NORMAL_95**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    reach = math.sqrt(share * (1 - share) / n + square / (4 * n * n)) * NORMAL_95 / (1 + square / n)
    return middle - reach if right else 0.0, middle + reach if right < n else 1.0


@dataclass(frozen=True, slots=True)
class Score:
    """How many of some answers are right.

    Attributes:
        n: Answers, at least one.
        right: Right ones.
    """

    n: int
    right: int

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, in percent."""
        low, high = wilson(self.right, self.n)
        return 100 * low, 100 * high

    @property
    def estimate(self) -> Estimate:
        """The accuracy and its interval."""
        return Estimate(self.n, self.accuracy, *self.interval)


def widened(estimate: Estimate) -> Estimate:
    """A difference of pairs none of which differs, which resampling gives no width: by Wilson both ways."""
    if estimate.low != estimate.high or estimate.value:
        return estimate
    reach = 100 * wilson(0, estimate.n)[1]
    return Estimate(estimate.n, 0.0, -reach, reach)


class Bootstrap:
    """Pictures drawn again and again with replacement, the same for every figure of one set of questions.

    Questions about one picture are drawn together: they are right or wrong together more often than chance
    has it.
    """

    def __init__(self, pictures: Sequence[str], seed: int) -> None:
        """Draw from the pictures of some questions.

        Args:
            pictures: Each question's.
            seed: The same seed draws the same.
        """
        names, self._picture = np.unique(np.array(pictures), return_inverse=True)
        self._count, self._seed = len(names), seed

    def ratios(
        self, figures: Mapping[KEY, tuple[NDArray[np.floating], NDArray[np.floating]]]
    ) -> dict[KEY, Estimate]:
        """Sums of numerators over sums of denominators, in percent, with percentile intervals.

        Args:
            figures: By any key numerators and denominators [questions]; where the numerator is NaN the
                question is left out.
        """
        if not figures:
            return {}
        there = [np.isfinite(one) for one, _ in figures.values()]
        pairs = list(zip(figures.values(), there, strict=True))
        above = np.stack([self._summed(np.where(has, one, 0)) for (one, _), has in pairs], axis=1)
        below = np.stack([self._summed(np.where(has, one, 0)) for (_, one), has in pairs], axis=1)
        drawn = self._drawn(above, below)
        estimates = {}
        for column, key in enumerate(figures):
            total = below[:, column].sum()
            sample = drawn[:, column]
            sample = sample[np.isfinite(sample)]
            low = high = None
            if self._count > 1 and len(sample):
                low, high = (float(one) for one in np.percentile(sample, (2.5, 97.5)))
            value = 100 * float(above[:, column].sum() / total)
            estimates[key] = Estimate(int(there[column].sum()), value, low, high)
        return estimates

    def _summed(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Values [questions] summed by picture."""
        summed = np.zeros(self._count)
        np.add.at(summed, self._picture, values)
        return summed

    def _drawn(self, above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each resample's ratios in percent: [resamples, figures]."""
        random = np.random.default_rng(self._seed)
        even = np.full(self._count, 1 / self._count)
        rows = max(1, TOGETHER // self._count)
        parts = []
        for start in range(0, RESAMPLES, rows):
            weights = random.multinomial(self._count, even, min(rows, RESAMPLES - start))
            with np.errstate(divide="ignore", invalid="ignore"):
                parts.append(100 * (weights @ above) / (weights @ below))
        return np.concatenate(parts)
