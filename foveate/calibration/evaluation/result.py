"""What an evaluation gave: answers kept by every choice of tokens, and selectivity, by group of questions."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from foveate.calibration.evaluation.groups import Group, Row, count_group
from foveate.calibration.evaluation.judged import Judged, judged_facts

FORMAT = "foveate-evaluation"
VERSION = 2
KINDS = ("all", "data", "scope", "task")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation.

    Attributes:
        made: What was evaluated, the data, the settings: the same for the same evaluation.
        judged: Every question, in the order of the data.
        seconds: How long those took that were not kept aside before, without loading the model.
        processes: How many shared the work.
    """

    made: dict[str, Any]
    judged: list[Judged]
    seconds: float
    processes: int

    @cached_property
    def groups(self) -> list[Group]:
        """All questions first, each measure apart; then by data file if several, scope and task."""
        return group(self.judged, self.made["seed"])

    @property
    def name(self) -> str:
        """The checkpoint's or the bundle's."""
        return str(self.made[self.made["kind"]])

    @property
    def totals(self) -> list[Group]:
        """All questions, each measure apart."""
        return [one for one in self.groups if one.kind == "all"]

    @property
    def unreadable(self) -> list[Judged]:
        """Questions that could not be taken."""
        return [one for one in self.judged if one.unreadable]


def group(judged: Iterable[Judged], seed: int) -> list[Group]:
    """Count the questions that were asked, each measure apart: all, by file if several, scope and task."""
    members: defaultdict[tuple[str, str, str], list[Judged]] = defaultdict(list)
    for one in judged:
        if not one.unreadable:
            for kind, name in {"all": "", "data": one.data, **one.tags}.items():
                members[kind, name, one.measure].append(one)
    files = {name for kind, name, _ in members if kind == "data"}
    return [
        count_group(kind, name, measure, members[kind, name, measure], seed)
        for kind, name, measure in sorted(members, key=lambda key: (KINDS.index(key[0]), key[2]))
        if kind != "data" or len(files) > 1
    ]


def evaluation_facts(evaluation: Evaluation) -> dict[str, Any]:
    """For JSON: all there is, the one number first."""
    judged = evaluation.judged
    return {
        "format": FORMAT,
        "version": VERSION,
        "selectivity": [
            {"measure": total.measure, **asdict(one)}
            for total in evaluation.totals
            for one in total.selectivity
        ],
        **evaluation.made,
        "records": len(judged),
        "unreadable": len(evaluation.unreadable),
        "seconds": round(evaluation.seconds, 3),
        "processes": evaluation.processes,
        "groups": [asdict(one) for one in evaluation.groups],
        "answers": [judged_facts(one) for one in judged],
    }


def by_way(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by way and ranking, in their order."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.way, row.ranking), []).append(row)
    return found
