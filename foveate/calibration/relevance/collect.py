"""Relevance maps of a data set: each question answered, the answer judged, and what mattered for it kept."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate.atomic_write import writing
from foveate.bundle.reader import file_digest
from foveate.calibration.answers import Rule, is_right
from foveate.calibration.dataset import Record, read_records
from foveate.calibration.processes import join_processes, load_model, stopping
from foveate.calibration.progress import Meter
from foveate.calibration.provenance import checkpoint_facts, tool_versions
from foveate.calibration.relevance import manifest as manifests
from foveate.calibration.relevance.manifest import Manifest, Outcome
from foveate.calibration.relevance.propagation import Mode
from foveate.calibration.relevance.store import (
    FLUSH_SECONDS,
    LEFTOVER,
    Sample,
    Store,
    Writer,
    finish,
)
from foveate.calibration.torch_model import NEW_TOKENS, TorchModel
from foveate.errors import ImageError, LimitError, OutputExistsError, PromptError
from foveate.terminal import plural, table

SETTINGS = ("mode", "dtype", "rule", "keep_wrong", "max_new_tokens")
"""The options that a store's manifest holds."""


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """How relevance maps are made.

    Attributes:
        mode: How relevance is computed; see `foveate.calibration.relevance.propagation`.
        dtype: What the model computes in: "fp32" or "bf16".
        device: "auto", "cpu" or "cuda"; under accelerate, the process's own of that kind.
        rule: When an answer is right.
        keep_wrong: Keep the maps of wrong answers too, for ablations.
        max_new_tokens: The longest answer.
        limit: Take only so many records, from the first.
        force: Start afresh where there are relevance maps already.
        flush_seconds: How often what is done goes to the disk; a kill costs no more than that.
    """

    mode: Mode = "grad"
    dtype: str = "fp32"
    device: str = "auto"
    rule: Rule = "exact"
    keep_wrong: bool = False
    max_new_tokens: int = NEW_TOKENS
    limit: int | None = None
    force: bool = False
    flush_seconds: float = FLUSH_SECONDS


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run of all its processes did.

    Attributes:
        out: The store.
        outcomes: How many of all its records came out how.
        new: How many of them are of this run.
        seconds: What these took, without loading the model.
        processes: How many shared the work.
    """

    out: Path
    outcomes: dict[str, int]
    new: int
    seconds: float
    processes: int

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
    state = join_processes(options.device)
    meter = Meter(manifests.OUTCOMES, quiet or not state.is_main_process)
    with contextlib.ExitStack() as stack:
        if state.is_main_process:
            with meter.stage("checking"):
                manifest = _manifest(source, data, options)
                stack.enter_context(_claimed(out, manifest, options.force))
        state.wait_for_everyone()
        records = read_records(data)[: options.limit]
        store = Store.open(out, complete=False)
        todo = sorted((r for r in records if r.id not in store.ids), key=lambda record: record.id)
        state.wait_for_everyone()
        mine = todo[state.process_index :: state.num_processes]
        if mine:
            model = load_model(source, options.dtype, state, meter, len(mine))
            writer = Writer(out, store.manifest, state.process_index, options.flush_seconds)
            with writer, stopping(state, meter, lambda: _leave(writer)):
                for record in mine:
                    sample, outcome, reason = map_relevance(model, record, options)
                    writer.add(sample, outcome, reason)
                    meter.step(outcome)
        state.wait_for_everyone()
        if not state.is_main_process:
            return None
        seconds = meter.seconds
        outcomes = finish(out)
        return Collected(out, outcomes, len(todo), seconds, state.num_processes)


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
    try:
        question = model.prepare(record.question, model.open(record))
    except (ImageError, LimitError, PromptError, OSError) as error:
        return sample, "unreadable", str(error)
    tokens = model.answer(question, most=options.max_new_tokens)
    text = model.text(tokens)
    sample = replace(sample, answer=text, tokens=len(tokens))
    if not text.strip():
        return sample, "wrong", "empty answer"
    right = is_right(text, record.answers, options.rule)
    if not right and not options.keep_wrong:
        return sample, "wrong", "wrong answer"
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
    return kept, "kept", "" if right else "wrong answer"


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
    return f"{collected.out}: {plural(records, 'record')}, {new}\n{table(rows)}"


def _manifest(source: str, data: Path, options: CollectOptions) -> Manifest:
    """How this run makes samples; reads the data set to refuse a bad one early."""
    read_records(data)
    return Manifest(
        **checkpoint_facts(source),
        **{name: getattr(options, name) for name in SETTINGS},
        data=str(data),
        data_sha256=file_digest(data),
        tools=tool_versions(),
    )


@contextlib.contextmanager
def _claimed(folder: Path, manifest: Manifest, force: bool) -> Iterator[None]:
    """Hold a folder for one run, made ready: a new store, or one of the same settings to go on with.

    Args:
        folder: Made if need be; its parent must exist.
        manifest: How the run makes samples.
        force: Delete the samples of a store that is there.

    Raises:
        DataError: The store that is there is damaged.
        OutputExistsError: Something else is there, a store of other settings, or another run's.
        OutputError: It cannot be written.
    """
    with writing(folder):
        if not os.path.lexists(folder):
            folder.mkdir()
        if not folder.is_dir():
            raise OutputExistsError(f"{folder} is not a folder. Give another path.")
    with _locked(folder):
        with writing(folder):
            _make_ready(folder, manifest, force)
        yield


def _make_ready(folder: Path, manifest: Manifest, force: bool) -> None:
    """Check what a folder holds, clean up after a killed run, and write the manifest."""
    if not (folder / manifests.MANIFEST).exists():
        strangers = [name for name in os.listdir(folder) if not LEFTOVER.fullmatch(name)]
        if strangers:
            raise OutputExistsError(
                f"{folder} holds {min(strangers)} and no relevance maps. Give another path."
            )
    elif force:
        manifests.check_format(folder)
    else:
        before = Store.open(folder, complete=False).manifest
        for name, value in manifest.settings().items():
            if (was := getattr(before, name)) != value:
                raise OutputExistsError(
                    f"{folder} was made with another {name} ({was!r}, now {value!r}), and samples "
                    "of both do not mix. Give another path, or delete them with force (--force)."
                )
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name) or (force and manifests.SHARD.fullmatch(path.name)):
            path.unlink()
    manifests.write_manifest(folder, manifest)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder for as long as this process lives, where the system can."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputExistsError(
                f"{folder}: another run is writing there. Wait for it, or give another path."
            ) from None
        yield
    finally:
        os.close(descriptor)
