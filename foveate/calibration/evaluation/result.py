"""What an evaluation gave: each answer, and counts by group, ranking and keep."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = "foveate-evaluation"
VERSION = 1
NORMAL_95 = 1.959963984540054
KINDS = ("data", "scope", "task")


@dataclass(frozen=True, slots=True)
class Trial:
    """One answer with some of the visual tokens.

    Attributes:
        ranking: How they were chosen.
        keep: How many, a ratio or a count.
        answer: The model's; None where nothing could be ranked.
        right: Whether it was right.
        used: The share of all visual tokens that was used.
    """

    ranking: str
    keep: float | int
    answer: str | None
    right: bool
    used: float


@dataclass(frozen=True, slots=True)
class Judged:
    """One record and what came of it.

    Attributes:
        data: The data file it is of.
        id: The record's.
        tags: Its task and scope, where it has them.
        tokens: Visual tokens of its pictures.
        answer: The model's with all of them.
        right: Whether that was right.
        trials: For each ranking and keep, in their order.
        unreadable: Why the model could not take it; it then counts nowhere else.
    """

    data: str
    id: str
    tags: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    answer: str = ""
    right: bool = False
    trials: tuple[Trial, ...] = ()
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """How many of some answers are right.

    Attributes:
        n: Answers.
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


@dataclass(frozen=True, slots=True)
class Row:
    """One ranking at one keep, within one group.

    Attributes:
        ranking: How tokens were chosen.
        keep: How many, a ratio or a count.
        score: The answers.
        used: The share of the visual tokens that was used, averaged over the records.
        unranked: Records without an answer, because nothing could be ranked; they count as wrong.
    """

    ranking: str
    keep: float | int
    score: Score
    used: float
    unranked: int


@dataclass(frozen=True, slots=True)
class Group:
    """Records that are counted together.

    Attributes:
        kind: "all", or "data", "scope" or "task".
        name: Which file, scope or task; empty for all.
        full: With all visual tokens.
        rows: For each ranking and keep, in their order.
    """

    kind: str
    name: str
    full: Score
    rows: tuple[Row, ...]

    def of_full(self, row: Row) -> float | None:
        """A row's accuracy in percent of that with all tokens; None where nothing is right then."""
        return 100 * row.score.right / self.full.right if self.full.right else None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation.

    Attributes:
        made: The checkpoint, the data, the settings: the same for the same evaluation.
        judged: Every record, in the order of the data.
        groups: All records first.
        seconds: How long the records took, without loading the model.
        processes: How many shared the work.
    """

    made: dict[str, Any]
    judged: list[Judged]
    groups: list[Group]
    seconds: float
    processes: int

    @property
    def unreadable(self) -> list[Judged]:
        """Records that the model could not take."""
        return [one for one in self.judged if one.unreadable]

    @property
    def rate(self) -> float:
        """Records a second."""
        return len(self.judged) / self.seconds if self.seconds else 0.0


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of `right` in `n`, n ≥ 1."""
    share, square = right / n, NORMAL_95**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    reach = math.sqrt(share * (1 - share) / n + square / (4 * n * n)) * NORMAL_95 / (1 + square / n)
    return middle - reach if right else 0.0, middle + reach if right < n else 1.0


def group(judged: Iterable[Judged]) -> list[Group]:
    """Count the records that were answered: all, those of each file if several, scope and task."""
    members: defaultdict[tuple[str, str], list[Judged]] = defaultdict(list)
    for one in judged:
        if not one.unreadable:
            for named in {"all": "", "data": one.data, **one.tags}.items():
                members[named].append(one)
    files = sum(kind == "data" for kind, _ in members)
    order = ("all", *KINDS)
    return [
        _counted(kind, name, members[kind, name])
        for kind, name in sorted(members, key=lambda named: order.index(named[0]))
        if kind != "data" or files > 1
    ]


def _counted(kind: str, name: str, members: Sequence[Judged]) -> Group:
    """One group's counts."""
    rows = []
    for trials in zip(*(one.trials for one in members), strict=True):
        score = Score(len(trials), sum(trial.right for trial in trials))
        used = statistics.fmean(trial.used for trial in trials)
        unranked = sum(trial.answer is None for trial in trials)
        rows.append(Row(trials[0].ranking, trials[0].keep, score, used, unranked))
    full = Score(len(members), sum(one.right for one in members))
    return Group(kind, name, full, tuple(rows))


def evaluation_facts(evaluation: Evaluation) -> dict[str, Any]:
    """For JSON: all there is."""
    return {
        "format": FORMAT,
        "version": VERSION,
        **evaluation.made,
        "records": len(evaluation.judged),
        "unreadable": len(evaluation.unreadable),
        "seconds": round(evaluation.seconds, 3),
        "records_per_second": round(evaluation.rate, 3),
        "processes": evaluation.processes,
        "groups": [_group_facts(group) for group in evaluation.groups],
        "answers": [asdict(one) for one in evaluation.judged],
    }


def _group_facts(group: Group) -> dict[str, Any]:
    """One group, for JSON."""
    rows = []
    for row in group.rows:
        way, found = {"ranking": row.ranking, "keep": row.keep}, _score_facts(row.score)
        of_full = group.of_full(row)
        rows.append(
            {**way, **found, "of_full": of_full, "used": row.used, "unranked": row.unranked}
        )
    full = _score_facts(group.full)
    return {"kind": group.kind, "name": group.name, "full": full, "rows": rows}


def _score_facts(score: Score) -> dict[str, Any]:
    """One score, for JSON."""
    return {**asdict(score), "accuracy": score.accuracy, "interval": list(score.interval)}
