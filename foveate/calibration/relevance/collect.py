"""Relevance maps of a data set: each question answered, the answer judged, and what mattered for it kept."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from foveate.bundle.reader import file_digest
from foveate.calibration.answers import Rule
from foveate.calibration.dataset import Record, read_records
from foveate.calibration.processes import join_processes, load_model, stopping
from foveate.calibration.progress import Meter
from foveate.calibration.provenance import checkpoint_facts, tool_versions
from foveate.calibration.relevance import manifest as manifests
from foveate.calibration.relevance.answered import Judging, ask
from foveate.calibration.relevance.claim import claimed
from foveate.calibration.relevance.manifest import AUTO, Manifest, Outcome
from foveate.calibration.relevance.propagation import Mode
from foveate.calibration.relevance.selectivity import (
    Selectivity,
    describe_selectivity,
    measure_selectivity,
    read_selectivity,
    selectivity_facts,
    several,
    write_selectivity,
)
from foveate.calibration.relevance.store import FLUSH_SECONDS, Sample, Store, Writer, finish
from foveate.calibration.relevance.trial import choose_mode, describe_trial, trial_facts
from foveate.calibration.torch_model import NEW_TOKENS, TorchModel
from foveate.errors import DataError
from foveate.terminal import plural, table

SETTINGS = ("mode", "dtype", "rule", "keep_wrong", "own_answers", "max_new_tokens")
"""The options that a store's manifest holds."""


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """How relevance maps are made.

    Attributes:
        mode: How relevance is computed; see `foveate.calibration.relevance.propagation`. "auto"
            measures all modes first and takes the best.
        dtype: What the model computes in: "fp32" or "bf16".
        device: "auto", "cpu" or "cuda"; under accelerate, the process's own of that kind.
        rule: When an answer is right.
        keep_wrong: Keep the maps of wrong answers too, for ablations.
        own_answers: Take the model's own answers as right: the data need have none.
        max_new_tokens: The longest answer.
        limit: Take only so many records, from the first.
        report: Also measure, in every mode, whether relevance is about the question.
        force: Start afresh where there are relevance maps already.
        flush_seconds: How often what is done goes to the disk; a kill costs no more than that.
    """

    mode: Mode | Literal["auto"] = "auto"
    dtype: str = "fp32"
    device: str = "auto"
    rule: Rule = "exact"
    keep_wrong: bool = False
    own_answers: bool = False
    max_new_tokens: int = NEW_TOKENS
    limit: int | None = None
    report: bool = False
    force: bool = False
    flush_seconds: float = FLUSH_SECONDS

    @property
    def judging(self) -> Judging:
        """Which answers have maps."""
        return Judging(self.rule, self.keep_wrong, self.own_answers, self.max_new_tokens)

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            DataError: Own answers, and something that judges them.
        """
        if self.own_answers and (self.keep_wrong or self.rule != "exact"):
            raise DataError(
                "with the model's own answers none is wrong; leave out --keep-wrong and --rule, or "
                "--own-answers"
            )


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run of all its processes did.

    Attributes:
        out: The store.
        outcomes: How many of all its records came out how.
        new: How many of them are of this run.
        seconds: What these took, without loading the model.
        processes: How many shared the work.
        made: How the store was made.
        selectivity: Whether relevance is about the question, where that was measured.
    """

    out: Path
    outcomes: dict[str, int]
    new: int
    seconds: float
    processes: int
    made: Manifest
    selectivity: Selectivity | None

    @property
    def rate(self) -> float:
        """New records a second."""
        return self.new / self.seconds if self.seconds else 0.0


def collect(
    source: str, data: Path, out: Path, options: CollectOptions, *, quiet: bool = True
) -> Collected | None:
    """Make the relevance maps of a data set, or go on with those that an earlier run left.

    Args:
        source: The checkpoint: a folder or a hub id.
        data: The records, as JSON Lines.
        out: The store's folder; its parent must exist.
        options: How; all but the device, the limit and the flushing must be an earlier run's.
        quiet: Do not show how far the run is.

    Returns:
        What was done; None in all processes of a run but the main one.

    Raises:
        CheckpointError: No checkpoint that can be loaded.
        DataError: No data set, or a damaged store.
        OutputExistsError: Something is at `out` that this run cannot go on with.
        OutputError: The disk did not take it.
        BackendError: The device cannot be had.
    """
    options.check()
    state = join_processes(options.device)
    quiet = quiet or not state.is_main_process
    meter = Meter(manifests.OUTCOMES, quiet)
    model: TorchModel | None = None
    with contextlib.ExitStack() as stack:
        if state.is_main_process:
            with meter.stage("checking"):
                manifest = _manifest(source, data, options)
                stack.enter_context(claimed(out, manifest, options.force))
        state.wait_for_everyone()
        records = read_records(data, not options.own_answers)[: options.limit]
        if state.is_main_process and manifests.read_manifest(out).mode == AUTO:
            model = load_model(source, options.dtype, state, meter, 0)
            with stopping(state, meter, lambda: "stopped before a mode was chosen"):
                choose_mode(out, model, records, options.judging, quiet=quiet)
        state.wait_for_everyone()
        store = Store.open(out, complete=False)
        todo = sorted((r for r in records if r.id not in store.ids), key=lambda record: record.id)
        state.wait_for_everyone()
        mine = todo[state.process_index :: state.num_processes]
        if mine:
            model = load_model(source, options.dtype, state, meter, len(mine), model)
            how = replace(options, mode=cast(Mode, store.manifest.mode))
            writer = Writer(out, store.manifest, state.process_index, options.flush_seconds)
            with writer, stopping(state, meter, lambda: _leave(writer)):
                for record in mine:
                    sample, outcome, reason = map_relevance(model, record, how)
                    writer.add(sample, outcome, reason)
                    meter.step(outcome)
        state.wait_for_everyone()
        if not state.is_main_process:
            return None
        seconds = meter.seconds
        outcomes, made = finish(out), manifests.read_manifest(out)
        found = read_selectivity(out, made) if options.report else None
        if options.report and found is None:
            model = load_model(source, options.dtype, state, meter, 0, model)
            with stopping(state, meter, lambda: "stopped; the same command measures it anew"):
                found = measure_selectivity(model, records, options.judging, made, quiet=quiet)
            write_selectivity(out, found)
        return Collected(out, outcomes, len(todo), seconds, state.num_processes, made, found)


def _leave(writer: Writer) -> str:
    """Flush what is done, so that an interrupt loses none of it, and say how much there is."""
    writer.flush()
    stored = plural(len(Store.open(writer.folder, complete=False).ids), "record")
    return f"{writer.folder} holds {stored}; the same command goes on from there"


def map_relevance(
    model: TorchModel, record: Record, options: CollectOptions
) -> tuple[Sample, Outcome, str]:
    """Answer one question, judge the answer, and compute what mattered for it (Eq. 1).

    Returns:
        The sample, with arrays where it is kept; what came of it; and the reason, where there is one.
    """
    sample = Sample(record.id, record.question, record.answers, pictures=record.names)
    asked = ask(model, record, options.judging)
    if isinstance(asked, str):
        return sample, "unreadable", asked
    question, tokens = asked.question, asked.tokens
    sample = replace(sample, answer=asked.text, tokens=len(tokens))
    if not asked.usable:
        return sample, "wrong", asked.fault
    assert options.mode != AUTO
    relevance = model.relevance(question, tokens, options.mode).float()
    attention = model.attention(question)
    if not (relevance.isfinite().all() and attention.isfinite().all()):
        reason = f"relevance is not finite in {options.dtype}; try another dtype"
        return sample, "unreadable", reason
    kept = replace(
        sample,
        picture=question.visual.picture.astype(np.int32),
        boxes=question.visual.boxes,
        relevance=relevance.cpu().numpy(),
        attention=attention.mean(1).cpu().numpy(),
        instruction=question.prompt.token_ids[question.prompt.instruction_index].astype(np.int32),
        words=attention.mean(0).cpu().numpy(),
    )
    return kept, "kept", asked.fault


def collected_facts(collected: Collected) -> dict[str, Any]:
    """What was done, for JSON."""
    return {
        "out": str(collected.out),
        "records": sum(collected.outcomes.values()),
        **collected.outcomes,
        "new": collected.new,
        "seconds": round(collected.seconds, 3),
        "samples_per_second": round(collected.rate, 3),
        "processes": collected.processes,
        "mode": collected.made.mode,
        "own_answers": collected.made.own_answers,
        "trial": trial_facts(collected.made),
        "selectivity": selectivity_facts(collected.selectivity),
    }


def describe_collected(collected: Collected) -> str:
    """What was done, for people."""
    records = sum(collected.outcomes.values())
    rows = [(str(count), outcome) for outcome, count in collected.outcomes.items()]
    pace = (
        f"{collected.new} of them new in {collected.seconds:.1f} s: {collected.rate:.1f} a second "
        f"(processes: {collected.processes})"
    )
    new = pace if collected.new else "none new"
    return (
        f"{collected.out}: {plural(records, 'record')}, {new}\n{table(rows)}\n"
        f"{describe_trial(collected.made)}"
        + (f"\n{describe_selectivity(collected.selectivity)}" if collected.selectivity else "")
    )


def _manifest(source: str, data: Path, options: CollectOptions) -> Manifest:
    """How this run makes samples; reads the data set to refuse a bad one early."""
    records = read_records(data, not options.own_answers)[: options.limit]
    if options.report:
        several(records)
    return Manifest(
        **checkpoint_facts(source),
        **{name: getattr(options, name) for name in SETTINGS},
        data=str(data),
        data_sha256=file_digest(data),
        tools=tool_versions(),
    )
