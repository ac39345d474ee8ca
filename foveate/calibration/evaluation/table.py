"""An evaluation for people: selectivity first, then what every choice of tokens keeps."""

from collections.abc import Sequence
from pathlib import Path

from foveate.calibration.evaluation.groups import Group, Row
from foveate.calibration.evaluation.intervals import Estimate
from foveate.calibration.evaluation.result import Evaluation, by_way
from foveate.calibration.evaluation.ways import RANKED, WAYS
from foveate.terminal import one_line, plural, table

ROUNDING = 0.005
NONE = "–"
MEANT = {"exact": "answers", "words": "words"}


def describe_evaluation(evaluation: Evaluation) -> str:
    """For people: selectivity, then tables of all questions, then of each group."""
    made, totals = evaluation.made, evaluation.totals
    data = ", ".join(one["path"] for one in made["data"])
    parts = [_describe_selectivity(total) for total in totals]
    parts.append(
        f"{evaluation.name} ({made['kind']}) on {data}: {plural(len(evaluation.judged), 'question')}, "
        f"{evaluation.seconds:.1f} s (processes: {evaluation.processes})"
    )
    for total in totals:
        parts += [_describe_rows(total), _describe_found(total), _describe_shared(total)]
        parts += [
            _describe_groups(evaluation.groups, total, ranking) for ranking in _rankings(total)
        ]
        parts += [_describe_used(total)]
    parts.append(_describe_left_out(evaluation))
    return "\n\n".join(filter(None, parts))


def keep_label(keep: float | int | None) -> str:
    """A keep for people: 12.5 %, or 64 tokens."""
    if keep is None:
        return ""
    return f"{100 * keep:g} %" if isinstance(keep, float) else plural(keep, "token")


def _describe_selectivity(total: Group) -> str:
    """The one number: own − other."""
    what = "" if total.measure == "exact" else ", of words"
    if not total.selectivity:
        return (
            f"selectivity{what}: not measured, since no question that was answered has another about "
            "the same picture"
        )
    keeps = list(dict.fromkeys(one.keep for one in total.selectivity))
    lines = [["", *map(keep_label, keeps), ""]]
    for ranking in dict.fromkeys(one.ranking for one in total.selectivity):
        found = {one.keep: one.points for one in total.selectivity if one.ranking == ranking}
        cells = (_signed(found[keep]) if keep in found else NONE for keep in keeps)
        lines.append(
            [_short(ranking), *cells, plural(max(one.n for one in found.values()), "question")]
        )
    return (
        f"selectivity{what}: {MEANT[total.measure]} kept by the own question less those kept by another "
        f"about the same picture, in points, 95 % interval\n{table(lines)}"
    )


def _describe_rows(total: Group) -> str:
    """What every choice of tokens keeps: a row a choice, a column a keep."""
    ways = by_way(total.rows)
    keeps = _keeps(total)
    lines = [["", *map(keep_label, keeps)]]
    alone = [["", ""]]
    for (way, ranking), rows in ways.items():
        found = {row.keep: row.kept for row in rows}
        if None in found:
            alone.append([WAYS[way], _plain(found[None])])
        else:
            cells = (_plain(found.get(keep)) for keep in keeps)
            lines.append([_name(way, ranking, total), *cells])
    full = total.full
    if total.measure == "exact":
        base = f"{plural(total.asked, 'question')} rightly answered with all tokens"
        accuracy = f"with all visual tokens {_plain(full)} % of {full.n} answers are right"
    else:
        base = f"what all tokens give ({plural(total.asked, 'question')})"
        accuracy = (
            f"with all visual tokens {_plain(full)} % of the words of {full.n} answers are right"
        )
    text = f"{accuracy}\n\n{MEANT[total.measure]} kept, in % of {base}, by what chose the tokens\n"
    text += table(lines)
    return f"{text}\n{table(alone[1:])}" if alone[1:] else text


def _describe_found(total: Group) -> str:
    """How many of the asked thing's tokens each choice holds."""
    keeps = _keeps(total)
    lines = [["", *map(keep_label, keeps)]]
    for (way, ranking), rows in by_way(total.rows).items():
        if way not in ("own", "other", "neutral", "random", "oracle"):
            continue
        found = {row.keep: row for row in rows if row.recall is not None}
        if found:
            cells = (_recall(found.get(keep)) for keep in keeps)
            lines.append([_name(way, ranking, total), *cells])
    if len(lines) == 1:
        return ""
    count = max(row.recall.n for row in total.rows if row.recall is not None)
    return (
        f"the asked thing's tokens ({plural(count, 'question')} with boxes): % of them that are kept / % of "
        f"the kept that are of it\n{table(lines)}"
    )


def _describe_shared(total: Group) -> str:
    """How far the own choice and another question's are the same."""
    if not total.shared:
        return ""
    keeps = list(dict.fromkeys(one.keep for one in total.shared))
    lines = [["", *map(keep_label, keeps)]]
    for ranking in dict.fromkeys(one.ranking for one in total.shared):
        found = {one.keep: one for one in total.shared if one.ranking == ranking}
        cells = (
            f"{_plain(found[keep].jaccard)}, chance {found[keep].chance:.1f}"
            if keep in found
            else NONE
            for keep in keeps
        )
        lines.append([_short(ranking), *cells])
    return (
        "tokens kept by the own question and by the other, in % of those kept by either (Jaccard)\n"
        f"{table(lines)}"
    )


def _describe_groups(groups: Sequence[Group], total: Group, ranking: str) -> str:
    """Each group of one measure: own, other and random at each keep."""
    mine = [one for one in groups if one.measure == total.measure]
    if len(mine) == 1:
        return ""
    keeps = _keeps(total)
    lines = [["", "", "asked", "all tokens", *map(keep_label, keeps)]]
    for group in mine:
        kept = {(row.way, row.ranking, row.keep): row.kept.value for row in group.rows}
        cells = []
        for keep in keeps:
            three = (("own", ranking, keep), ("other", ranking, keep), ("random", "", keep))
            cells.append(" / ".join(f"{kept[key]:.1f}" if key in kept else NONE for key in three))
        name = one_line(group.name, 40)
        lines.append([group.kind, name, str(group.full.n), f"{group.full.value:.1f}", *cells])
    return (
        f"by {_short(ranking)}: {MEANT[total.measure]} kept by the own question / another / chance\n"
        f"{table(lines)}"
    )


def _describe_used(total: Group) -> str:
    """What share of the tokens was really used, for each choice where it is not the keep."""
    names: dict[tuple[str, ...], list[str]] = {}
    for (way, _), rows in by_way(total.rows).items():
        if any(row.keep is None or abs(row.used - row.keep) > ROUNDING for row in rows):
            shares = tuple(f"{100 * row.used:.1f} %" for row in rows)
            names.setdefault(shares, []).append(WAYS[way])
    lines = [[", ".join(dict.fromkeys(ways)), *shares] for shares, ways in names.items()]
    return f"visual tokens really used, of all\n{table(lines)}" if lines else ""


def _describe_left_out(evaluation: Evaluation) -> str:
    """What was not counted, and why."""
    lines = []
    if evaluation.unreadable:
        first = evaluation.unreadable[0]
        lines.append(
            f"unreadable, and counted nowhere: {plural(len(evaluation.unreadable), 'question')}; "
            f"the first is {first.id}: {one_line(first.unreadable, 200)}"
        )
    alone = sum(not one.other for one in evaluation.judged if not one.unreadable)
    if alone:
        lines.append(
            f"without another question about another thing in the same picture: {plural(alone, 'question')}"
        )
    unseen = sum(one.unseen for one in evaluation.judged)
    if unseen:
        lines.append(f"with boxes that no visual token shows: {plural(unseen, 'question')}")
    return "\n".join(lines)


def _recall(row: Row | None) -> str:
    """What a choice holds of the asked thing, and how much of it is that: 75.5 (74.3–76.8) / 28."""
    if row is None or row.recall is None or row.precision is None:
        return NONE
    return f"{_plain(row.recall)} / {row.precision.value:.0f}"


def _name(way: str, ranking: str, total: Group) -> str:
    """A way for people, with its ranking where there are several."""
    several = way in RANKED and len(_rankings(total)) > 1
    return f"{WAYS[way]}, by {_short(ranking)}" if several else WAYS[way]


def _plain(estimate: Estimate | None) -> str:
    """A figure: 97.8 (93.7–99.2)."""
    if estimate is None:
        return NONE
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1f}"
    return f"{estimate.value:.1f} ({estimate.low:.1f}–{estimate.high:.1f})"


def _signed(estimate: Estimate) -> str:
    """A difference: +7.8 (+3.7 to +9.2)."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.1f}"
    return f"{estimate.value:+.1f} ({estimate.low:+.1f} to {estimate.high:+.1f})"


def _short(ranking: str) -> str:
    """A ranking's name, a file's without its folders."""
    return Path(ranking).name


def _rankings(total: Group) -> list[str]:
    """The rankings, in their order."""
    return list(dict.fromkeys(row.ranking for row in total.rows if row.way == "own"))


def _keeps(group: Group) -> list[float | int]:
    """A group's keeps, in their order."""
    return list(dict.fromkeys(row.keep for row in group.rows if row.keep is not None))
