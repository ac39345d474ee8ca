"""An evaluation as a picture: answers kept against tokens kept, by what chose the tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.calibration.evaluation.groups import Group, Row
from foveate.calibration.evaluation.result import Evaluation, by_way
from foveate.calibration.evaluation.table import keep_label
from foveate.errors import needed
from foveate.terminal import plural

with needed("--plot draws with matplotlib, which is not installed: pip install 'foveate[bench]'"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "own": "#0b6e99",
    "other": "#d1495b",
    "neutral": "#e09f3e",
    "oracle": "#2f7d4f",
    "without": "#5c4b99",
    "smaller": "#7d6b5d",
    "centre": "#9aa5b1",
    "random": "#5f6b76",
}
SHORT = {
    "own": "own question",
    "other": "another question",
    "neutral": "neutral prompt",
    "oracle": "asked thing first",
    "without": "never the asked thing",
    "smaller": "smaller picture",
    "centre": "centre",
    "random": "random",
}
INK = "#3c444c"
MAIN = ("own", "other")
DASHED = ("oracle", "without", "smaller", "centre", "random")
PANEL = (6.4, 4.6)
ACROSS = 3
"""The most panels side by side."""
DPI = 140
TOP = 102
GAP = 4.6
"""The least distance of two labels, in percent of answers."""
LEAST_WRITTEN = 1.0
"""Selectivity below so many points is not written into the plot."""

Curve = tuple[list[float], list[float]]


def draw_evaluation(evaluation: Evaluation) -> Figure:
    """A panel a measure and ranking; between own and other question selectivity is shaded."""
    panels = [
        (total, ranking)
        for total in evaluation.totals
        for ranking in dict.fromkeys(row.ranking for row in total.rows if row.way == "own")
    ]
    across = min(ACROSS, max(1, len(panels)))
    down = -(-max(1, len(panels)) // across)
    figure = Figure(figsize=(PANEL[0] * across, PANEL[1] * down), dpi=DPI, layout="constrained")
    figure.suptitle(
        f"What {evaluation.name} still answers with fewer visual tokens",
        x=0.01, ha="left", weight="bold",
    )  # fmt: skip
    for number, (total, ranking) in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(down, across, number), total, ranking)
    return figure


def _draw_panel(axes: Axes, total: Group, ranking: str) -> None:
    """One measure and ranking; fewer tokens to the right."""
    rows = {
        way: found
        for (way, its), found in by_way(total.rows).items()
        if way in COLOURS and its in ("", ranking)
    }
    curves = {way: _curve(found) for way, found in rows.items()}
    _shade(axes, curves, total, ranking)
    for way, (shares, values) in curves.items():
        strong = way in MAIN
        axes.plot(
            shares, values, linestyle=(0, (4, 2)) if way in DASHED else "-", marker="o",
            markersize=5 if strong else 3.5, linewidth=2.6 if strong else 1.5,
            color=COLOURS[way], zorder={"own": 5, "other": 4}.get(way, 3), clip_on=False,
        )  # fmt: skip
        if strong:
            _draw_intervals(axes, rows[way], COLOURS[way])
    _label_ends(axes, curves)
    marks = {1.0: 1.0} | {
        row.used: row.keep for way, found in rows.items() for row in found if way != "smaller"
    }
    shown = _apart(sorted(marks, reverse=True))
    axes.set_xscale("log")
    axes.set_xticks(shown, [keep_label(marks[share]).replace(" tokens", "") for share in shown])
    axes.minorticks_off()
    axes.set_xlim(1.04, min(share for found, _ in curves.values() for share in found))
    axes.set_ylim(0, TOP)
    what = "answers" if total.measure == "exact" else "words of captions"
    axes.set_ylabel(f"{what} kept, % of what all tokens give", color=INK)
    axes.set_xlabel("visual tokens kept", color=INK)
    axes.tick_params(axis="both", length=0, labelsize=9, labelcolor=INK)
    axes.grid(axis="y", color="#e3e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#aab2ba")
    axes.set_title(
        f"ranked by {Path(ranking).name}: {plural(total.asked, 'question')} about "
        f"{plural(total.pictures, 'picture')}",
        loc="left", fontsize=10, color=INK,
    )  # fmt: skip


def _curve(rows: Sequence[Row]) -> Curve:
    """Shares of the tokens used and what they keep, from few tokens to all."""
    points = [(row.used, row.kept.value) for row in rows if row.used < 1]
    # Nothing that leaves the asked thing out ever keeps all tokens.
    points += [] if rows[0].way == "without" else [(1.0, 100.0)]
    points.sort()
    return [share for share, _ in points], [value for _, value in points]


def _shade(axes: Axes, curves: Mapping[str, Curve], total: Group, ranking: str) -> None:
    """Fill what lies between own and other, and write selectivity where it is widest."""
    if not set(MAIN) <= set(curves):
        return
    shares, own = curves["own"]
    _, other = curves["other"]
    if len(own) != len(other):
        return
    axes.fill_between(shares, other, own, color=COLOURS["own"], alpha=0.13, linewidth=0, zorder=1)
    found = [one for one in total.selectivity if one.ranking == ranking]
    widest = max(found, key=lambda one: one.points.value, default=None)
    if widest is None or widest.points.value < LEAST_WRITTEN:
        return
    used = next(
        row.used
        for row in total.rows
        if row.way == "own" and row.ranking == ranking and row.keep == widest.keep
    )
    # Where there is no room between the curves, below them.
    wide = widest.points.value > 3 * GAP
    middle = (widest.own + widest.other) / 2 if wide else widest.other - 2 * GAP
    axes.annotate(
        f"selectivity\n{widest.points.value:+.0f} points",
        (used, middle), xytext=(-8, 0), textcoords="offset points",
        ha="right", va="center", fontsize=9, color=COLOURS["own"], zorder=6,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _draw_intervals(axes: Axes, rows: Sequence[Row], colour: str) -> None:
    """The 95 % interval of each point."""
    for row in rows:
        if row.used < 1 and row.kept.low is not None and row.kept.high is not None:
            axes.vlines(
                row.used, row.kept.low, row.kept.high, colour, linewidth=1.1, alpha=0.55, zorder=2
            )


def _label_ends(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Name each curve at its end, where the fewest tokens are, labels moved apart."""
    # Of curves that end alike the main ones are named first.
    order = list(COLOURS)
    ends = sorted((-values[0], order.index(way), way) for way, (_, values) in curves.items())
    places = spread([-height for height, *_ in ends])
    for (*_, way), place in zip(ends, places, strict=True):
        axes.annotate(
            SHORT[way], (1, place / TOP), xycoords="axes fraction", xytext=(12, 0),
            textcoords="offset points", va="center", fontsize=9, color=COLOURS[way],
            weight="bold" if way in MAIN else "normal", annotation_clip=False,
        )  # fmt: skip


def spread(heights: Sequence[float]) -> list[float]:
    """Heights, the highest first, moved apart by at least `GAP` and none below 0 or above `TOP`."""
    places: list[float] = []
    for number, height in enumerate(heights):
        least = GAP * (len(heights) - 1 - number)
        place = max(height, least)
        places.append(min(place, places[-1] - GAP if places else TOP))
    # Those pressed together under a high one may rise again to where they belong.
    for number in range(len(places) - 2, -1, -1):
        places[number] = max(places[number], places[number + 1] + GAP)
    return places


def _apart(shares: Sequence[float]) -> list[float]:
    """Of shares, the largest first, those that leave room for their labels on a logarithmic axis."""
    kept: list[float] = []
    for share in shares:
        if not kept or share < kept[-1] * 0.85:
            kept.append(share)
    return kept
