"""Parity: every graph of a bundle against the checkpoint run by transformers' own eager code."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import Operators, Precision
from foveate.errors import ParityError
from foveate.export import embeddings
from foveate.export.float32_copy import write_float32_copy
from foveate.runtime.backends.ort.session import OnnxEngine, OnnxOptions

TOLERANCE = {"fp32": 1e-5, "fp16": 2e-2, "bf16": 1e-1, "int8": 1.0, "fp8": 1.0, "int4": 1.0}
"""Largest difference over largest magnitude, by precision: fp32 leaves room for another order of
summation; fp16 and bf16 for rounding after every operator on both sides. What a quantized graph loses
is measured, not bounded: further off than its largest value it computes something else."""

ADVICE = {
    "fp16": "export fp32 or bf16 instead",
    "int8": "calibrate with data as the model is to see it, or export int4 or fp16 instead",
    "fp8": "calibrate with data as the model is to see it, or export int4 or fp16 instead",
    "int4": "export int8 or fp16 instead",
}

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """One call of one graph, or lookup in the embedding table, and what transformers gave for it.

    Attributes:
        role: The graph.
        feeds: Its inputs.
        expected: What transformers' eager code gave, for some or all of its outputs.
        check: A further check of all outputs against the feeds, returning what is wrong or None.
    """

    role: str
    feeds: Arrays
    expected: Arrays
    check: Callable[[Arrays, Arrays], str | None] | None = None


def compare(
    files: Mapping[str, Path],
    precision: Precision,
    operators: Operators,
    cases: list[Case],
    scratch: Path,
    allowed: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Run every case through onnxruntime on the CPU, and look up the embedding table's.

    bfloat16 graphs, and graphs of contrib operators of 16 bits, have no CPU kernels: a float32 copy
    runs instead (same graph, same weights).

    Args:
        files: The file of each role that `cases` names.
        precision: What the graphs were exported in.
        operators: What they are made of.
        cases: What `reference` gave for the checkpoint.
        scratch: A folder for the copies.
        allowed: For some graphs the largest difference, in place of the precision's `TOLERANCE`.

    Returns:
        For each graph the largest difference over the largest magnitude of the output concerned.

    Raises:
        ParityError: A difference above the precision's tolerance, or a failed check.
    """
    worst: dict[str, float] = {}
    copied = precision == "bf16" or (precision == "fp16" and operators == "contrib")
    for role in dict.fromkeys(case.role for case in cases):
        with _opened(files[role], scratch if copied else None) as run:
            for case in (case for case in cases if case.role == role):
                feeds = dict(case.feeds)
                if copied:
                    halves = {name for name, one in feeds.items() if one.dtype == np.float16}
                    feeds |= {name: feeds[name].astype(np.float32) for name in halves}
                outputs = run(feeds)
                worst[role] = max(
                    worst.get(role, 0.0), difference(role, outputs, case.expected, precision)
                )
                fault = case.check(feeds, outputs) if case.check else None
                if fault:
                    raise ParityError(f"{role}: {fault}; report this with the checkpoint's name")
        most = (allowed or {}).get(role, TOLERANCE[precision])
        if not worst[role] <= most:
            raise ParityError(
                f"{role}: differs from transformers by {worst[role]:.2g} of its largest value, over the "
                f"{most:.2g} allowed in {precision}; {ADVICE.get(precision, 'report this with its name')}"
            )
    return worst


@contextmanager
def _opened(path: Path, copies: Path | None) -> Iterator[Callable[[Arrays], Arrays]]:
    """What a role's file makes of inputs: a graph, or its float32 copy, run; a table looked up."""
    if path.name == embeddings.FILE:
        yield lambda feeds: {"text_embeds": embeddings.look_up(path, feeds["token_ids"])}
        return
    if copies is not None:
        path = write_float32_copy(path, copies / path.name)
    with closing(OnnxEngine(path, OnnxOptions(frugal=True))) as engine:
        yield lambda feeds: {name: value.numpy() for name, value in engine.run(feeds).items()}


def difference(role: str, outputs: Arrays, expected: Arrays, precision: Precision) -> float:
    """Largest absolute difference over largest magnitude, the worst over the expected outputs."""
    worst = 0.0
    for name, wanted in expected.items():
        given = outputs[name]
        if given.shape != wanted.shape:
            raise ParityError(
                f"{role}: {name} has shape {given.shape}, transformers gave {wanted.shape}"
            )
        gap = np.abs(given.astype(np.float64) - wanted.astype(np.float64)).max()
        if not np.isfinite(gap):
            raise ParityError(f"{role}: {name} {not_finite(wanted, precision)}")
        worst = max(worst, float(gap / max(np.abs(wanted).max(), 1e-30)))
    return worst


def not_finite(wanted: NDArray[Any], precision: Precision) -> str:
    """What is at fault where an output or what transformers gave for it is not finite, and what helps."""
    if precision == "fp16":
        return "is beyond float16's range; export bf16 or fp32 instead"
    if not np.isfinite(wanted).all():
        return (
            f"is not finite where transformers computes it in {precision} either: the checkpoint's weights "
            "are at fault; download it again, or train it again"
        )
    return "is not finite where transformers' is; report this with the checkpoint's name"


def check_selection(feeds: Arrays, outputs: Arrays) -> str | None:
    """The compressor must keep its own scores' top-k, in order, with embeddings and positions untouched."""
    kept, scores = outputs["kept_indices"], outputs["scores"]
    count = int(feeds["keep"][0])
    if len(kept) != count or np.any(np.diff(kept) <= 0):
        return "the kept tokens are not an ascending list of the length that was given"
    dropped = np.setdiff1d(np.arange(len(scores)), kept)
    if len(dropped) and scores[dropped].max() > scores[kept].min():
        return "a dropped token scores above a kept one"
    places = np.concatenate([feeds["text_index"], feeds["visual_index"][kept]])
    order = np.argsort(places)
    rows = np.concatenate([feeds["text_embeds"], feeds["visual_embeds"][kept]])[order]
    if not np.array_equal(outputs["inputs_embeds"][0], rows):
        return "the kept prompt's embeddings are not the ones that went in"
    positions = feeds["position_ids"][:, places[order]]
    if not np.array_equal(outputs["kept_position_ids"][:, 0], positions):
        return "the kept tokens lost their positions"
    return None
