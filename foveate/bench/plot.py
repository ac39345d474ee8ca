"""A bench as a picture: time to the first token against tokens kept, and answers that stay right."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from foveate.bench.result import STAGES, Bench, Case
from foveate.calibration.evaluation.result import FORMAT as EVALUATION
from foveate.calibration.evaluation.result import VERSION
from foveate.errors import DataError, needed

with needed("--plot draws with matplotlib, which is not installed: pip install 'foveate[bench]'"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = dict(zip(STAGES, ("#9aa5b1", "#1b6ca8", "#e09f3e", "#3c8d40"), strict=True))
QUALITY = ("#d1495b", "#7b2d8b", "#444444")
STYLES = {"transformers": ("s", "#222222"), "transformers, same tokens": ("^", "#777777")}
PANEL = (6.5, 4.5)
DPI = 120

Curve = list[tuple[float, float]]
"""Shares of the visual tokens used, and the percentage of answers that they keep right."""


def read_quality(path: Path, compressor: str) -> dict[str, Curve]:
    """Read what `foveate evaluate` found of the bundle's way of ranking.

    Args:
        path: What `foveate evaluate --json` wrote.
        compressor: The bundle's: "attention", or "f_theta" for rankings by a file.

    Returns:
        By ranking its curve, all tokens last.

    Raises:
        DataError: It cannot be read, or has no such ranking.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if (document["format"], document["version"]) != (EVALUATION, VERSION):
            raise ValueError(f"it is not of the format {EVALUATION}, version {VERSION}")
        everything = document["groups"][0]
        curves: dict[str, Curve] = {}
        for row in everything["rows"]:
            name = str(row["ranking"])
            ours = name == compressor or (compressor == "f_theta" and name.endswith(".safetensors"))
            if row["way"] == "own" and ours:
                point = (float(row["used"]), float(row["kept"]["value"]))
                curves.setdefault(Path(name).name, []).append(point)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{path}: no evaluation can be read from it ({error}); give what "
            "foveate evaluate --json wrote"
        ) from error
    if not curves:
        raise DataError(
            f"{path}: nothing in it was ranked by {compressor}, as the bundle's tokens are; "
            "evaluate this bundle, or its checkpoint with --rank attention, or --rank FILE for f_θ"
        )
    return {name: sorted({*curve, (1.0, 100.0)}) for name, curve in curves.items()}


def draw_bench(bench: Bench, quality: dict[str, Curve] | None = None) -> Figure:
    """A panel a picture or video; stages are stacked up to the first token, of the smallest batch.

    Where there are several batches, another panel has the tokens of a second by batch.
    """
    batched = len(bench.made["batches"]) > 1 < bench.made["new_tokens"]
    size = (PANEL[0] * len(bench.cases), PANEL[1] * (1 + batched))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    facts = bench.made["bundle"]
    gpu = bench.machine["gpu"]
    where = (gpu and gpu["name"]) or bench.machine["processor"] or bench.machine["machine"]
    note = ", random weights" if facts["weights"] == "random" else ""
    figure.suptitle(f"{facts['family']} {facts['precision']}{note} on {where}")
    panels = figure.subplots(1 + batched, len(bench.cases), squeeze=False)
    for axes, case in zip(panels[0], bench.cases, strict=True):
        _draw_case(axes, case)
        if quality:
            _draw_quality(axes, case, quality)
    names: dict[str, Any] = {}
    for axes in figure.axes:
        marks, labels = axes.get_legend_handles_labels()
        names |= zip(labels, marks, strict=True)
    figure.legend(names.values(), names, fontsize="small", loc="outside lower center", ncols=4)
    if batched:
        for axes, case in zip(panels[1], bench.cases, strict=True):
            _draw_batches(axes, case)
    return figure


def _draw_case(axes: Axes, case: Case) -> None:
    """Foveate's stages as bars, transformers' first tokens as marks."""
    batch = min(row.batch for row in case.ours)
    rows = [row for row in case.ours if row.batch == batch]
    whose = "" if batch == 1 else f" of the last of {batch}"
    places = [row.visual.kept for row in rows]
    gaps = np.diff(np.unique(places))
    # As wide as bars can be without touching, and no wider than a twelfth of all.
    width = min([*(0.8 * gaps), case.total / 12])
    bottom = np.zeros(len(rows))
    for stage, colour in COLOURS.items():
        heights = [1000 * spread.median if (spread := row.spread(stage)) else 0.0 for row in rows]
        axes.bar(places, heights, width, bottom, color=colour, label=stage)
        bottom = bottom + np.array(heights)
    for side, (marker, colour) in STYLES.items():
        marks = [
            (row.visual.kept, 1000 * spread.median)
            for row in case.rows
            if row.side == side and (spread := row.spread("first_token"))
        ]
        if marks:
            axes.plot(*zip(*marks, strict=True), marker, color=colour, label=side)
    axes.set(title=f"{case.scene}, {case.total} visual tokens", xlim=(0, case.total + width))
    _label(axes, "visual tokens kept", f"median time to the first token{whose} [ms]")


def _draw_batches(axes: Axes, case: Case) -> None:
    """Tokens of a second of all requests at once, a line for each number of tokens kept."""
    counts = sorted({row.batch for row in case.ours})
    for kept in dict.fromkeys(row.visual.kept for row in case.ours):
        curve = [
            (counts.index(row.batch), speed)
            for row in case.ours
            if row.visual.kept == kept and (speed := row.tokens_per_second)
        ]
        axes.plot(*zip(*curve, strict=True), "o-", label=str(kept))
    axes.legend(title="visual tokens kept", fontsize="small", loc="lower right")
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    _label(axes, "requests at once", "tokens per second, all requests together")


def _draw_quality(axes: Axes, case: Case, quality: dict[str, Curve]) -> None:
    """Right answers at the same shares of tokens, on an axis of their own."""
    right: Any = axes.twinx()
    for (name, curve), colour in zip(quality.items(), QUALITY * len(quality), strict=False):
        shares, accuracy = np.array(curve).T
        right.plot(shares * case.total, accuracy, "o-", color=colour, label=f"answers kept, {name}")
    right.set(ylabel="answers kept [%]", ylim=(0, 103))


def _label(axes: Axes, below: str, beside: str) -> None:
    """Name both axes, and draw lines across from zero on."""
    axes.set(xlabel=below, ylabel=beside)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.25)
