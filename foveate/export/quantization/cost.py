"""What quantization costs, written into the bundle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.bundle.manifest import Precision, Quantized
from foveate.bundle.quantization_report import FILE
from foveate.calibration.evaluation.result import Score
from foveate.export.quantization.questions import Asked


@dataclass(frozen=True, slots=True)
class GraphCost:
    """One quantized graph.

    Attributes:
        products: Matrix products that were quantized.
        left: Those that were not, by name, and why.
        bytes: Of graph and weights, before and after.
        parity: The largest difference from the checkpoint, before and after.
    """

    products: int
    left: dict[str, str]
    bytes: tuple[int, int]
    parity: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Cost:
    """All of it.

    Attributes:
        precision: What was quantized to.
        base: What the rest computes in.
        graphs: By role.
        calibrated: The questions that ranges come from; None where none are needed.
        asked: The questions asked before and after; None for none.
        scores: For each keep the right answers before and after.
    """

    precision: Quantized
    base: Precision
    graphs: dict[str, GraphCost]
    calibrated: Asked | None
    asked: Asked | None
    scores: dict[float, tuple[Score, Score]]


def write_cost(cost: Cost, folder: Path) -> None:
    """Write `FILE` into a bundle's folder."""
    document = {
        "precision": cost.precision,
        "base": cost.base,
        "graphs": {
            role: {
                "products": one.products,
                "left": one.left,
                "bytes": _pair(*one.bytes),
                "parity": _pair(*one.parity),
            }
            for role, one in cost.graphs.items()
        },
        "calibration": _asked_facts(cost.calibrated),
        "evaluation": _asked_facts(cost.asked),
        "answers": [
            {"keep": keep, **_pair(*(_score_facts(score) for score in pair))}
            for keep, pair in cost.scores.items()
        ],
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    (folder / FILE).write_text(f"{text}\n", encoding="utf-8")


def _pair(before: Any, after: Any) -> dict[str, Any]:
    """Two figures, for JSON."""
    return {"before": before, "after": after}


def _asked_facts(asked: Asked | None) -> dict[str, Any] | None:
    """Some questions, for JSON; a path says too much of the machine, so the file's name is all."""
    if asked is None:
        return None
    return {
        "data": asked.questions.path.name,
        "sha256": asked.sha256,
        "records": len(asked.questions.records),
        "used": asked.used,
        "unreadable": list(asked.unreadable),
    }


def _score_facts(score: Score) -> dict[str, Any]:
    """Right answers, for JSON."""
    low, high = score.interval
    return {"n": score.n, "right": score.right, "interval": [round(low, 2), round(high, 2)]}
