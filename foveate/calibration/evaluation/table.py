"""An evaluation for people: tables of accuracy by ranking, keep and group."""

from collections.abc import Sequence
from pathlib import Path

from foveate.calibration.evaluation.result import Evaluation, Group, Row, Score
from foveate.terminal import one_line, plural, table

ROUNDING = 0.005


def describe_evaluation(evaluation: Evaluation) -> str:
    """For people: all records first, then each group at each keep."""
    made, everything = evaluation.made, evaluation.groups[0]
    data = ", ".join(one["path"] for one in made["data"])
    parts = [
        f"{made['checkpoint']} on {data}: {plural(len(evaluation.judged), 'record')} in "
        f"{evaluation.seconds:.1f} s (processes: {evaluation.processes})",
        _describe_all(everything),
        *(_describe_groups(evaluation.groups, keep) for keep in _keeps(everything)),
    ]
    parts += filter(None, [_describe_used(everything), _describe_unranked(everything)])
    if evaluation.unreadable:
        first = evaluation.unreadable[0]
        parts.append(
            f"unreadable, and counted nowhere: {plural(len(evaluation.unreadable), 'record')}; "
            f"the first is {first.id}: {one_line(first.unreadable, 200)}"
        )
    return "\n\n".join(parts)


def _describe_all(everything: Group) -> str:
    """All records: a row a ranking, a column a keep."""
    lines = [["", *map(keep_label, _keeps(everything))]]
    lines.append(["full", _describe_score(everything.full, 100.0)])
    for ranking, rows in _by_ranking(everything).items():
        scores = (_describe_score(row.score, everything.of_full(row)) for row in rows)
        lines.append([ranking, *scores])
    return (
        f"accuracy in % of {plural(everything.full.n, 'record')}, in brackets its share of that with "
        f"all visual tokens, and its 95 % interval\n{table(lines)}"
    )


def _describe_score(score: Score, of_full: float | None) -> str:
    """One cell: 97.8 (99 %) 93.7–99.2."""
    low, high = score.interval
    share = "–" if of_full is None else f"{of_full:.0f} %"
    return f"{score.accuracy:.1f} ({share}) {low:.1f}–{high:.1f}"


def _describe_groups(groups: Sequence[Group], keep: float | int) -> str:
    """One keep: a row a group, a column a ranking."""
    lines = [["", "", "records", "full", *_short(list(_by_ranking(groups[0])))]]
    for group in groups:
        scores = [group.full, *(row.score for row in group.rows if row.keep == keep)]
        cells = [str(group.full.n), *(f"{score.accuracy:.1f}" for score in scores)]
        lines.append([group.kind, one_line(group.name, 40), *cells])
    return f"accuracy in %, kept: {keep_label(keep)}\n{table(lines)}"


def _describe_used(everything: Group) -> str:
    """What share of the tokens was really used, for each ranking where it is not the keep."""
    names: dict[tuple[str, ...], list[str]] = {}
    for ranking, rows in _by_ranking(everything).items():
        if any(abs(row.used - row.keep) > ROUNDING for row in rows):
            names.setdefault(tuple(f"{100 * row.used:.1f} %" for row in rows), []).append(ranking)
    lines = [[", ".join(rankings), *shares] for shares, rankings in names.items()]
    return f"visual tokens really used, of all\n{table(lines)}" if lines else ""


def _describe_unranked(everything: Group) -> str:
    """For how many records nothing could be ranked."""
    ways = _by_ranking(everything).items()
    counts = {ranking: max(row.unranked for row in rows) for ranking, rows in ways}
    lines = [[ranking, plural(count, "record")] for ranking, count in counts.items() if count]
    return f"nothing to rank by, and counted as wrong\n{table(lines)}" if lines else ""


def _short(rankings: list[str]) -> list[str]:
    """Rankings' names, files without their folders where that leaves no two the same."""
    names = [Path(name).name for name in rankings]
    return names if len(set(names)) == len(names) else rankings


def _keeps(group: Group) -> list[float | int]:
    """A group's keeps, in their order."""
    return list(dict.fromkeys(row.keep for row in group.rows))


def _by_ranking(group: Group) -> dict[str, list[Row]]:
    """A group's rows by ranking."""
    rows: dict[str, list[Row]] = {}
    for row in group.rows:
        rows.setdefault(row.ranking, []).append(row)
    return rows


def keep_label(keep: float | int) -> str:
    """A keep for people: 12.5 %, or 64 tokens."""
    return f"{100 * keep:g} %" if isinstance(keep, float) else plural(keep, "token")
