"""Float graphs to quantized ones: calibrate, rewrite, compare, and ask before and after."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx_ir as ir

from foveate.bundle.manifest import GraphSpec, Precision, Quantized
from foveate.bundle.quantization_report import FILE, ROLE
from foveate.errors import ExportError
from foveate.export import embeddings
from foveate.export.parity import Case, compare
from foveate.export.quantization.cost import Cost, GraphCost, write_cost
from foveate.export.quantization.draft import Draft
from foveate.export.quantization.linears import find_linears
from foveate.export.quantization.numbers import BLOCKS, block_size
from foveate.export.quantization.options import QuantizationOptions, quantized
from foveate.export.quantization.questions import (
    Asked,
    Questions,
    Say,
    ask_all,
    choose_questions,
    score_all,
)
from foveate.export.quantization.ranges import Observer
from foveate.export.quantization.rewrite import OPSET, rewrite, save

KEPT = ("compressor",)
"""Graphs that are never quantized: what decides which tokens stay."""


@dataclass(frozen=True, slots=True)
class Result:
    """Quantized graphs in a folder.

    Attributes:
        files: Role to file name, of all graphs, their weights and the embedding table.
        graphs: What each graph takes and gives.
        parity: The largest difference of each from the checkpoint.
    """

    files: dict[str, str]
    graphs: dict[str, GraphSpec]
    parity: dict[str, float]


def quantization_stages(precision: Precision, options: QuantizationOptions) -> tuple[str, ...]:
    """The stages of `quantize`, in order; none for a float precision."""
    if quantized(precision) is None:
        return ()
    calibrate = ("calibrate",) if options.calibration else ()
    ask = ("answers",) if options.calibration or options.evaluate else ()
    return (*calibrate, "quantize", "parity of quantized", *ask)


def quantize(
    draft: Draft,
    target: Path,
    precision: Quantized,
    base: Precision,
    options: QuantizationOptions,
    cases: list[Case],
    stage: Callable[[str], None],
    say: Say,
) -> Result:
    """Quantize the graphs of a draft, and write all that it has into another folder.

    Args:
        draft: The float graphs, already compared with the checkpoint.
        target: The folder to write into.
        precision: What to quantize to.
        base: What the float graphs compute in.
        options: What to calibrate with and what to ask.
        cases: What transformers gave for each graph.
        stage: Told as each of `quantization_stages` begins.
        say: Told how far it is.

    Raises:
        DataError: No data that can be used.
        ExportError: A graph of which nothing can be quantized.
        ParityError: A quantized graph that no longer computes what the checkpoint does.
    """
    calibration, held_out = choose_questions(options)
    roles = [role for role in draft.manifest.graphs if role not in KEPT]
    ranges: dict[str, dict[str, float]] = {role: {} for role in roles}
    calibrated = None
    if calibration is not None:
        stage("calibrate")
        calibrated, ranges = _calibrate(draft, roles, precision, base, calibration, say)

    stage("quantize")
    after = replace(draft, folder=target)
    specs, costs = dict(draft.manifest.graphs), {}
    for role in draft.manifest.graphs:
        say(role)
        if role in KEPT:
            for path in (draft.graph(role), draft.weights(role)):
                shutil.copyfile(path, target / path.name)
            continue
        products, left = _write(draft.graph(role), after.graph(role), role, precision, ranges[role])
        specs[role] = msgspec.structs.replace(specs[role], opset=OPSET[precision])
        costs[role] = (products, left)
    shutil.copyfile(draft.table, after.table)

    stage("parity of quantized")
    paths = {role: after.graph(role) for role in specs} | {embeddings.ROLE: after.table}
    parity = compare(paths, precision, "standard", cases, draft.folder)

    asked, scores = None, {}
    if options.calibration or options.evaluate:
        stage("answers")
        if held_out is not None:
            keeps = tuple(dict.fromkeys((1.0, draft.manifest.compressor.keep)))
            with draft.open(base) as pipe:
                _, before = score_all(pipe, held_out, keeps, lambda text: say(f"{base}: {text}"))
            with after.open(precision) as pipe:
                asked, now = score_all(
                    pipe, held_out, keeps, lambda text: say(f"{precision}: {text}")
                )
            scores = {keep: (before[keep], now[keep]) for keep in keeps}
    graphs = {
        role: GraphCost(
            products,
            left,
            (draft.bytes(role), after.bytes(role)),
            (draft.manifest.parity[role], parity[role]),
        )
        for role, (products, left) in costs.items()
    }
    write_cost(Cost(precision, base, graphs, calibrated, asked, scores), target)
    files = {ROLE: FILE, embeddings.ROLE: after.table.name}
    for role in specs:
        files |= {role: after.graph(role).name, f"{role}.weights": after.weights(role).name}
    return Result(files, specs, parity)


def _calibrate(
    draft: Draft,
    roles: Sequence[str],
    precision: Quantized,
    base: Precision,
    questions: Questions,
    say: Say,
) -> tuple[Asked, dict[str, dict[str, float]]]:
    """Ask questions of the float graphs, and choose the ranges of what their products take."""
    count = len(questions.records)
    observers = {role: Observer(draft.graph(role), count) for role in roles}
    with draft.open(base, observers) as pipe:
        asked = ask_all(pipe, questions, say)
    ranges = {}
    for role, observer in observers.items():
        say(f"ranges of {role}")
        ranges[role] = observer.ranges(precision)
    return asked, ranges


def _write(
    source: Path, target: Path, role: str, precision: Quantized, ranges: dict[str, float]
) -> tuple[int, dict[str, str]]:
    """Write a graph's quantized form; how many products it has, and which were left and why."""
    model = ir.load(source)
    linears = find_linears(model.graph)
    left = {}
    if precision == "int4":
        left = {
            linear.name: f"{linear.matrix().shape[0]} rows, no multiple of {BLOCKS[-1]}"
            for linear in linears
            if not block_size(linear.matrix().shape[0])
        }
    chosen = [linear for linear in linears if linear.name not in left]
    if not chosen:
        raise ExportError(
            f"{role}: no matrix product of it can be quantized to {precision}; choose another "
            "--precision"
        )
    rewrite(model, chosen, precision, ranges)
    save(model, target)
    return len(chosen), left
