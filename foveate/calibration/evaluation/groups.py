"""Questions that are counted together: what each choice of tokens keeps of their answers."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.calibration.evaluation.intervals import Bootstrap, Estimate, Score, widened
from foveate.calibration.evaluation.judged import Judged
from foveate.calibration.evaluation.ways import WAYS

Numbers = NDArray[np.floating]
Key = tuple[str, str, float | int | None]
"""A way, a ranking and a keep."""
AGAINST = ("other", "neutral", "random", "centre", "smaller")
"""What the asked question's own choice is compared with, question by question."""


@dataclass(frozen=True, slots=True)
class Row:
    """One choice of tokens.

    Attributes:
        way: What they were chosen by; see `WAYS`.
        ranking: The subject's way to rank; empty where that makes no difference.
        keep: How many, a ratio or a count; None where the way itself says.
        kept: Answers kept, in percent of what all tokens give.
        used: The share of the visual tokens that was used, in the mean.
        recall: Percent of the asked thing's tokens that were kept; None where they are not known.
        precision: Percent of the kept tokens that are the asked thing's; None likewise.
    """

    way: str
    ranking: str
    keep: float | int | None
    kept: Estimate
    used: float
    recall: Estimate | None
    precision: Estimate | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What the asked question's own choice keeps more than another, on the same questions.

    Attributes:
        against: The other way.
        ranking: The subject's way to rank.
        keep: A ratio or a count.
        own: Answers kept by the own choice, in percent.
        other: Answers kept by the other.
        points: Their difference in percentage points, from pairs.
    """

    against: str
    ranking: str
    keep: float | int
    own: float
    other: float
    points: Estimate


@dataclass(frozen=True, slots=True)
class Shared:
    """How far the asked question and another one keep the same tokens.

    Attributes:
        ranking: The subject's way to rank.
        keep: A ratio or a count.
        jaccard: Tokens kept by both, in percent of those kept by either.
        chance: The same to expect of two random choices.
    """

    ranking: str
    keep: float | int
    jaccard: Estimate
    chance: float


@dataclass(frozen=True, slots=True)
class Group:
    """Questions that are counted together.

    Attributes:
        kind: "all", or "data", "scope" or "task".
        name: Which file, scope or task; empty for all.
        measure: "exact" or "words".
        full: With all visual tokens: percent of right answers, or of right words.
        asked: Questions whose answer with all tokens was worth something; the rest counts of these.
        pictures: How many pictures they are about.
        rows: For each choice of tokens.
        differences: Of the own choice and others.
        shared: By ranking and keep.
    """

    kind: str
    name: str
    measure: str
    full: Estimate
    asked: int
    pictures: int
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    shared: tuple[Shared, ...]

    @property
    def selectivity(self) -> list[Difference]:
        """Own − other, by ranking and keep."""
        return [one for one in self.differences if one.against == "other"]


def count_group(kind: str, name: str, measure: str, members: Sequence[Judged], seed: int) -> Group:
    """Count questions of one measure that were all answered, at least one.

    Args:
        kind: See `Group`.
        name: See `Group`.
        measure: See `Group`.
        members: The questions.
        seed: Of the bootstrap.
    """
    base = [one for one in members if one.score]
    if measure == "exact":
        full = Score(len(members), len(base)).estimate
    else:
        values = np.array([one.score for one in members])
        bootstrap = Bootstrap([one.picture for one in members], seed)
        full = bootstrap.ratios({"full": (values, np.ones(len(values)))})["full"]
    counted = _Counts(base, measure, seed)
    pictures = len({one.picture for one in base})
    parts = tuple(counted.rows()), tuple(counted.differences()), tuple(counted.shared())
    return Group(kind, name, measure, full, len(base), pictures, *parts)


class _Counts:
    """What is counted of questions that all tokens answer."""

    def __init__(self, base: Sequence[Judged], measure: str, seed: int) -> None:
        """Put every figure's numbers together, and draw their intervals at once."""
        self._measure = measure
        self._full = full = np.array([one.score for one in base])
        every = np.ones(len(base))
        trials = [{(one.way, one.ranking, one.keep): one for one in each.trials} for each in base]
        found = dict.fromkeys(key for one in trials for key in one)
        self._keys: list[Key] = sorted(found, key=lambda key: list(WAYS).index(key[0]))
        self._worth = {key: _column(trials, key, "score") for key in self._keys}
        self._used = {key: _column(trials, key, "used") for key in self._keys}
        overlaps = [{(one.ranking, one.keep): one for one in each.overlaps} for each in base]
        self._pairs = list(dict.fromkeys(key for one in overlaps for key in one))
        self._chance = {key: _column(overlaps, key, "chance") for key in self._pairs}
        figures: dict[Hashable, tuple[Numbers, Numbers]] = {}
        for key in self._keys:
            figures["kept", key] = self._worth[key], full
            for part in ("recall", "precision"):
                values = _column(trials, key, part)
                if np.isfinite(values).any():
                    figures[part, key] = values, every
        for pair in self._pairs:
            figures["jaccard", pair] = _column(overlaps, pair, "jaccard"), every
        for own, other in self._compared():
            figures["gap", own, other] = self._worth[own] - self._worth[other], full
        self._found = Bootstrap([one.picture for one in base], seed).ratios(figures)

    def rows(self) -> Iterator[Row]:
        """Each choice of tokens."""
        for key in self._keys:
            kept = self._found["kept", key]
            if self._measure == "exact":
                kept = Score(kept.n, int(np.nansum(self._worth[key]))).estimate
            used = float(np.nanmean(self._used[key]))
            parts = (self._found.get((part, key)) for part in ("recall", "precision"))
            yield Row(*key, kept, used, *parts)

    def differences(self) -> Iterator[Difference]:
        """What the own choice keeps more than others."""
        for own, other in self._compared():
            points = widened(self._found["gap", own, other])
            both = np.isfinite(self._worth[own] - self._worth[other])
            mine, its = (
                100 * float(self._worth[key][both].sum() / self._full[both].sum())
                for key in (own, other)
            )
            _, ranking, keep = own
            assert keep is not None
            yield Difference(other[0], ranking, keep, mine, its, points)

    def shared(self) -> Iterator[Shared]:
        """How far the own choice and another question's are the same."""
        for ranking, keep in self._pairs:
            chance = 100 * float(np.nanmean(self._chance[ranking, keep]))
            yield Shared(ranking, keep, self._found["jaccard", (ranking, keep)], chance)

    def _compared(self) -> Iterator[tuple[Key, Key]]:
        """The own choices and what each is compared with, where a question has both."""
        for own in self._keys:
            way, ranking, keep = own
            for against in AGAINST if way == "own" else ():
                for other in ((against, ranking, keep), (against, "", keep)):
                    if (
                        other in self._worth
                        and np.isfinite(self._worth[own] - self._worth[other]).any()
                    ):
                        yield own, other


def _column(table: Sequence[Mapping[Any, Any]], key: object, name: str) -> Numbers:
    """One number of each question, NaN where it has none."""
    return np.array(
        [
            np.nan
            if (one := row.get(key)) is None or (value := getattr(one, name)) is None
            else value
            for row in table
        ],
        np.float64,
    )
