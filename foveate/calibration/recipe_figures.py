"""The figures of a recipe's run: as they go into a file, and for people."""

from pathlib import Path
from typing import Any

from foveate.calibration.evaluation.table import keep_label
from foveate.calibration.evaluation.ways import WAYS
from foveate.terminal import one_line, plural, table


def short_names(group: dict[str, Any]) -> dict[str, Any]:
    """A group of an evaluation with files of f_θ named without their folders."""
    short = {
        part: [{**one, "ranking": Path(one["ranking"]).name} for one in group[part]]
        for part in ("rows", "differences", "shared")
    }
    return group | short


def describe_figures(figures: dict[str, Any]) -> str:
    """For people."""
    auto = figures["auto_keep"]
    told = auto.get("not_calibrated")
    means = told or (
        f"{auto['share']:.1%} of the relevance; {100 * auto['mean_ratio']:.1f} % of the visual tokens on "
        f"average, where a fixed ratio needs {100 * auto['equal_fixed_ratio']:g} %"
    )
    return (
        f"{figures['f_theta']['path']}: trained on {figures['f_theta']['trained_on']}\n"
        + "".join(f"{describe_held_out(group)}\n" for group in figures["held_out"])
        + f"keep='auto': {one_line(means)}"
    )


def describe_held_out(group: dict[str, Any]) -> str:
    """Held-out questions of one measure: what each way keeps of their answers, and selectivity."""
    full, rows = group["full"], group["rows"]
    keeps = list(dict.fromkeys(row["keep"] for row in rows))
    lines = [("% kept, by what chose the tokens", *map(keep_label, keeps))]

    def line(name: str, found: dict[Any, str]) -> None:
        lines.append((name, *(found.get(keep, "–") for keep in keeps)))

    for way, ranking in dict.fromkeys((row["way"], row["ranking"]) for row in rows):
        mine = [row for row in rows if (row["way"], row["ranking"]) == (way, ranking)]
        name = f"{WAYS[way]}, by {ranking}" if ranking else WAYS[way]
        line(name, {row["keep"]: f"{row['kept']['value']:.1f}" for row in mine})
    selective = [one for one in group["differences"] if one["against"] == "other"]
    for ranking in dict.fromkeys(one["ranking"] for one in selective):
        points = {
            one["keep"]: f"{one['points']['value']:+.1f}"
            for one in selective
            if one["ranking"] == ranking
        }
        line(f"selectivity (own − another), by {ranking}", points)
    if not selective:
        lines.append(("selectivity: not measured, since no picture has another question", ""))
    what = "answers" if group["measure"] == "exact" else "the words of captions"
    return (
        f"held out: with all visual tokens {full['value']:.1f} % of {what} are right "
        f"({plural(full['n'], 'question')}); of these\n{table(lines)}"
    )
