"""Float graphs to quantized ones: calibrate, rewrite, compare, and ask before and after."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from foveate.atomic_write import link_or_copy
from foveate.bundle.manifest import EMBEDDINGS, GATHER, Manifest, Precision, Quantized, quantized
from foveate.bundle.quantization_report import FILE, ROLE
from foveate.errors import ExportError
from foveate.export.parity import Case, compare
from foveate.export.quantization.draft import Draft
from foveate.export.quantization.linears import find_linears
from foveate.export.quantization.numbers import BLOCKS, block_size
from foveate.export.quantization.options import QuantizationOptions
from foveate.export.quantization.questions import Questions, Say, choose_questions, score_all
from foveate.export.quantization.ranges import Observer
from foveate.export.quantization.rewrite import OPSET, rewrite

KEPT = ("compressor", GATHER)
"""Graphs that are never quantized: what decides which tokens stay, and what has no weights."""


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
    options: QuantizationOptions,
    cases: list[Case],
    stage: Callable[[str], None],
    say: Say,
) -> tuple[dict[str, str], Manifest]:
    """Quantize the graphs of a draft, and write all that it has into another folder.

    Args:
        draft: The float graphs, already compared with the checkpoint; its precision is what to
            quantize to.
        target: The folder to write into.
        options: What to calibrate with and what to ask.
        cases: What transformers gave for each graph.
        stage: Told as each of `quantization_stages` begins.
        say: Told how far it is.

    Returns:
        Role to file name, of all graphs, their weights and the embedding table; and the draft's manifest
        with what each graph takes and gives, and its largest difference from the checkpoint.

    Raises:
        DataError: No data that can be used.
        ExportError: A graph of which nothing can be quantized.
        ParityError: A quantized graph that no longer computes what the checkpoint does.
    """
    manifest, precision = draft.manifest, draft.to
    after = replace(draft, folder=target, precision=precision)
    calibration, held_out = choose_questions(options)
    calibrated, ranges = None, dict[str, dict[str, float]]()
    if calibration is not None:
        stage("calibrate")
        calibrated, ranges = _calibrate(draft, calibration, say)

    stage("quantize")
    specs, costs = dict(manifest.graphs), dict[str, dict[str, Any]]()
    for role in manifest.graphs:
        say(role)
        if role in KEPT:
            link_or_copy(draft.graph(role), after.graph(role))
            if draft.weights(role).is_file():
                link_or_copy(draft.weights(role), after.weights(role))
            continue
        source, made = draft.graph(role), after.graph(role)
        costs[role] = _write(source, made, role, precision, ranges.get(role, {}))
        costs[role]["bytes"] = {"before": draft.bytes(role), "after": after.bytes(role)}
        specs[role] = msgspec.structs.replace(specs[role], opset=OPSET[precision])
    link_or_copy(draft.table, after.table)

    stage("parity of quantized")
    paths = {role: after.graph(role) for role in specs} | {EMBEDDINGS: after.table}
    parity = compare(paths, precision, "standard", cases, draft.folder)
    for role, cost in costs.items():
        cost["parity"] = {"before": manifest.parity[role], "after": parity[role]}

    asked, answers = None, list[dict[str, Any]]()
    if options.calibration or options.evaluate:
        stage("answers")
    if held_out is not None:
        asked, answers = _ask(draft, after, held_out, say)
    report = {
        "precision": precision,
        "base": draft.precision,
        "graphs": costs,
        "calibration": calibrated,
        "evaluation": asked,
        "answers": answers,
    }
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (target / FILE).write_text(f"{text}\n", encoding="utf-8")
    files = {ROLE: FILE, EMBEDDINGS: after.table.name}
    for role in specs:
        files[role] = after.graph(role).name
        if after.weights(role).is_file():
            files[f"{role}.weights"] = after.weights(role).name
    return files, msgspec.structs.replace(manifest, graphs=specs, parity=parity)


def _calibrate(
    draft: Draft, questions: Questions, say: Say
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Ask questions of the float graphs, and choose the ranges of what their products take."""
    observers = {
        role: Observer(draft.graph(role), len(questions.records))
        for role in draft.manifest.graphs
        if role not in KEPT
    }
    with draft.open(observers) as pipe:
        asked, _ = score_all(pipe, questions, (1.0,), say)
    ranges = {}
    for role, observer in observers.items():
        say(f"ranges of {role}")
        ranges[role] = observer.ranges(draft.to)
    return asked, ranges


def _ask(
    before: Draft, after: Draft, questions: Questions, say: Say
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask questions before and after: what came of it, and the right answers by keep."""
    keeps = tuple(dict.fromkeys((1.0, before.manifest.compressor.keep)))
    answers: list[dict[str, Any]] = [{"keep": keep} for keep in keeps]
    for name, draft in (("before", before), ("after", after)):

        def say_of(text: str, precision: str = draft.precision) -> None:
            say(f"{precision}: {text}")

        with draft.open() as pipe:
            asked, scores = score_all(pipe, questions, keeps, say_of)
        for row in answers:
            score = scores[row["keep"]]
            interval = [round(bound, 2) for bound in score.interval]
            row[name] = {"n": score.n, "right": score.right, "interval": interval}
    return asked, answers


def _write(
    source: Path, target: Path, role: str, precision: Quantized, ranges: dict[str, float]
) -> dict[str, Any]:
    """Write a graph's quantized form; how many products it has, and which were left and why."""
    model = ir.load(source)
    linears = find_linears(model.graph)
    left = {
        linear.name: f"{linear.matrix().shape[0]} rows, no multiple of {BLOCKS[-1]}"
        for linear in linears
        if precision == "int4" and not block_size(linear.matrix().shape[0])
    }
    chosen = [linear for linear in linears if linear.name not in left]
    if not chosen:
        raise ExportError(
            f"{role}: no matrix product of it can be quantized to {precision}; choose another "
            "--precision"
        )
    rewrite(model, chosen, precision, ranges)
    ir.save(model, target, external_data=f"{target.name}.data")
    return {"products": len(chosen), "left": left}
