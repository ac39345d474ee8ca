"""What share of answers stays right when only some visual tokens are kept, by how they are ranked."""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from foveate.atomic_write import replace_file
from foveate.bundle.reader import file_digest
from foveate.calibration.answers import Rule, is_right
from foveate.calibration.dataset import Record, read_records
from foveate.calibration.evaluation.answer_cache import AnswerCache
from foveate.calibration.evaluation.rankings import Ranking, find_rankings
from foveate.calibration.evaluation.result import (
    Evaluation,
    Judged,
    Trial,
    evaluation_facts,
    group,
)
from foveate.calibration.outputs import check_output
from foveate.calibration.processes import gather, join_processes
from foveate.calibration.progress import Meter
from foveate.calibration.provenance import checkpoint_digest, tool_versions
from foveate.calibration.torch_model import NEW_TOKENS, TorchModel
from foveate.errors import DataError, ImageError, PromptError
from foveate.modeling.checkpoint import Checkpoint
from foveate.runtime.keep import kept_count, parse_keep
from foveate.terminal import plural

OUTCOMES = ("right", "wrong", "unreadable")
"""What comes of a record, by its answer with all visual tokens."""


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """How answers are compared.

    Attributes:
        rank: Rankings by name, or files of a trained f_θ, with commas between; none for all names.
        keep: Ratios or counts, with commas between. A record of fewer tokens than a count keeps all.
        dtype: What the model computes in: "fp32" or "bf16".
        device: "auto", "cpu" or "cuda"; under accelerate, the process's own of that kind.
        rule: When an answer is right.
        max_new_tokens: The longest answer.
        limit: Take only so many records of each file, from the first.
        out: A JSON file for everything.
        force: Replace that file if it is there.
    """

    rank: Sequence[str] = ()
    keep: str = "0.5,0.25,0.1"
    dtype: str = "fp32"
    device: str = "auto"
    rule: Rule = "exact"
    max_new_tokens: int = NEW_TOKENS
    limit: int | None = None
    out: Path | None = None
    force: bool = False


def evaluate(
    source: str, data: Sequence[Path], options: EvaluateOptions, meter: Meter | None = None
) -> Evaluation | None:
    """Answer every question of some data sets with all visual tokens, and with those that rankings keep.

    Args:
        source: The checkpoint: a folder or a hub id.
        data: The records, as JSON Lines files.
        options: How.
        meter: Told how far the run is, in `OUTCOMES`; without one nothing is shown.

    Returns:
        What came of it; None in all processes of a run but the main one.

    Raises:
        CheckpointError: No checkpoint that can be loaded, or neither a ranking nor an f_θ.
        DataError: No data set, or one without a record that the model can take.
        KeepError: A keep that cannot be.
        OutputExistsError: The output is there, and `force` was not given.
        OutputError: The output could not be written.
        BackendError: The device cannot be had.
    """
    state = join_processes(options.device)
    if meter is None or not state.is_main_process:
        meter = Meter(OUTCOMES, quiet=True)
    made: dict[str, Any] = {}
    if state.is_main_process:
        with meter.stage("checking"):
            if options.out:
                check_output(options.out, options.force)
            made = _made(source, data, options)
    state.wait_for_everyone()
    rankings, keeps = find_rankings(options.rank), parse_keeps(options.keep)
    records = _read(data, options.limit)
    mine = list(enumerate(records))[state.process_index :: state.num_processes]
    done: list[tuple[int, Judged]] = []
    seconds = 0.0
    try:
        if mine:
            with meter.stage(f"loading {source}"):
                model = TorchModel.load(source, options.dtype, str(state.device))
            meter.start(len(mine), state.num_processes)
            began = time.perf_counter()
            for number, (file, record) in mine:
                judged = judge(model, record, rankings, keeps, options, file)
                done.append((number, judged))
                meter.step(_outcome(judged))
            seconds = time.perf_counter() - began
        everything = gather(done)
        slowest = max(gather([seconds]))
    except KeyboardInterrupt:
        meter.stop(f"stopped after {plural(len(done), 'record')}; the next run starts afresh")
        if not state.is_main_process:
            raise SystemExit(130) from None
        raise
    if not state.is_main_process:
        return None
    judged_all = [judged for _, judged in sorted(everything, key=lambda pair: pair[0])]
    groups = group(judged_all)
    evaluation = Evaluation(made, judged_all, groups, slowest, state.num_processes)
    if options.out:
        text = json.dumps(evaluation_facts(evaluation), indent=2, ensure_ascii=False)
        replace_file(options.out, f"{text}\n".encode(), force=options.force)
    if not groups:
        first = judged_all[0]
        raise DataError(
            f"none of {plural(len(judged_all), 'record')} could be answered; the first is {first.id}: "
            f"{first.unreadable}"
        )
    return evaluation


def judge(
    model: TorchModel,
    record: Record,
    rankings: Sequence[Ranking],
    keeps: Sequence[float | int],
    options: EvaluateOptions,
    data: str = "",
) -> Judged:
    """Judge one record's answers: with all visual tokens, and with those that each ranking keeps."""

    def right(answer: str | None) -> bool:
        return answer is not None and is_right(answer, record.answers, options.rule)

    judged = Judged(data, record.id, dict(record.tags))
    try:
        answers = AnswerCache.of(model, record, options.max_new_tokens)
    except (ImageError, PromptError, OSError) as error:
        return replace(judged, unreadable=str(error))
    trials = []
    for ranking, keep in product(rankings, keeps):
        answer, used = answers.answer(ranking, capped_count(keep, answers.total))
        trials.append(Trial(ranking.name, keep, answer, right(answer), used / answers.total))
    return replace(
        judged,
        tokens=answers.total,
        answer=answers.full,
        right=right(answers.full),
        trials=tuple(trials),
    )


def capped_count(keep: float | int, total: int) -> int:
    """How many of `total` tokens a keep is; all of them for a count that is more."""
    return total if isinstance(keep, int) and keep > total else kept_count(keep, total)


def parse_keeps(text: str) -> list[float | int]:
    """Keeps as a person writes them, each once.

    Raises:
        KeepError: One that cannot be.
    """
    keeps = list(dict.fromkeys(parse_keep(one) for one in text.split(",")))
    for keep in keeps:
        kept_count(keep, sys.maxsize)
    return keeps


def _read(data: Sequence[Path], limit: int | None) -> list[tuple[str, Record]]:
    """The records of all files in order, each with its file."""
    if len({path.resolve() for path in data}) < len(data):
        raise DataError(f"{', '.join(map(str, data))}: a file stands twice; give each once")
    return [(str(path), record) for path in data for record in read_records(path)[:limit]]


def _made(source: str, data: Sequence[Path], options: EvaluateOptions) -> dict[str, Any]:
    """What an evaluation is of, for JSON; reads all of it to refuse what is bad early."""
    counts = Counter(file for file, _ in _read(data, options.limit))
    rankings, keeps = find_rankings(options.rank), parse_keeps(options.keep)
    checkpoint = Checkpoint.open(source)
    return {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": checkpoint_digest(checkpoint.root),
        "family": checkpoint.family,
        "dtype": options.dtype,
        "rule": options.rule,
        "max_new_tokens": options.max_new_tokens,
        "limit": options.limit,
        "data": [
            {"path": str(path), "sha256": file_digest(path), "records": counts[str(path)]}
            for path in data
        ],
        "rankings": [
            {"name": one.name}
            if one.file is None
            else {"name": one.name, "sha256": file_digest(one.file), "facts": one.facts}
            for one in rankings
        ],
        "keeps": keeps,
        "tools": tool_versions(),
    }


def _outcome(judged: Judged) -> str:
    """What came of a record with all its visual tokens."""
    return "unreadable" if judged.unreadable else "right" if judged.right else "wrong"
