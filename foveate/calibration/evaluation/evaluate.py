"""What share of answers stays right when only some visual tokens are kept, by how they are ranked."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

from foveate.atomic_write import check_file, replace_file
from foveate.bundle.reader import file_digest
from foveate.calibration.answers import Rule, is_right
from foveate.calibration.dataset import Record, read_records
from foveate.calibration.evaluation.answer_cache import AnswerCache
from foveate.calibration.evaluation.rankings import Ranking, find_rankings
from foveate.calibration.evaluation.result import Evaluation, Judged, Trial, evaluation_facts, group
from foveate.calibration.processes import gather, join_processes, load_model, stopping
from foveate.calibration.progress import Meter
from foveate.calibration.provenance import checkpoint_facts, tool_versions
from foveate.calibration.torch_model import NEW_TOKENS, TorchModel
from foveate.errors import DataError, ImageError, LimitError, PromptError
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
    source: str, data: Sequence[Path], options: EvaluateOptions, *, quiet: bool = True
) -> Evaluation | None:
    """Answer every question of some data sets with all visual tokens, and with those that rankings keep.

    Args:
        source: The checkpoint: a folder or a hub id.
        data: The records, as JSON Lines files.
        options: How.
        quiet: Do not show how far the run is.

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
    meter = Meter(OUTCOMES, quiet or not state.is_main_process)
    made: dict[str, Any] = {}
    if state.is_main_process:
        with meter.stage("checking"):
            if options.out:
                check_file(options.out, force=options.force)
            made = _made(source, data, options)
    state.wait_for_everyone()
    rankings, keeps = find_rankings(options.rank), parse_keeps(options.keep)
    mine = list(enumerate(_read(data, options.limit)))[state.process_index :: state.num_processes]
    done: list[tuple[int, Judged]] = []

    def remark() -> str:
        return f"stopped after {plural(len(done), 'record')}; the next run starts afresh"

    with stopping(state, meter, remark):
        if mine:
            model = load_model(source, options.dtype, state, meter, len(mine))
            for number, (file, record) in mine:
                judged = judge(model, record, rankings, keeps, options, file)
                done.append((number, judged))
                right = "right" if judged.right else "wrong"
                meter.step("unreadable" if judged.unreadable else right)
        slowest = max(gather([meter.seconds]))
        everything = gather(done)
    if not state.is_main_process:
        return None
    judged_all = [judged for _, judged in sorted(everything, key=itemgetter(0))]
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
    except (ImageError, LimitError, PromptError, OSError) as error:
        return replace(judged, unreadable=str(error))
    trials = []
    for ranking, keep in product(rankings, keeps):
        count = capped_count(keep, int(answers.candidates.sum()))
        answer, used = answers.answer(ranking, count)
        trials.append(Trial(ranking.name, keep, answer, right(answer), used / answers.total))
    full = answers.full
    return replace(
        judged, tokens=answers.total, answer=full, right=right(full), trials=tuple(trials)
    )


def capped_count(keep: float | int, total: int) -> int:
    """How many of `total` tokens that may be dropped a keep leaves; all of them for a count that is more."""
    return total if isinstance(keep, int) and keep > total else kept_count(keep, total)


def parse_keeps(text: str) -> list[float | int]:
    """Keeps as a person writes them, each once.

    Raises:
        KeepError: One that cannot be.
    """
    return list(dict.fromkeys(parse_keep(one) for one in text.split(",")))


def _read(data: Sequence[Path], limit: int | None) -> list[tuple[str, Record]]:
    """The records of all files in order, each with its file."""
    if len({path.resolve() for path in data}) < len(data):
        raise DataError(f"{', '.join(map(str, data))}: a file stands twice; give each once")
    return [(str(path), record) for path in data for record in read_records(path)[:limit]]


def _made(source: str, data: Sequence[Path], options: EvaluateOptions) -> dict[str, Any]:
    """What an evaluation is of, for JSON; reads all of it to refuse what is bad early."""
    counts = Counter(file for file, _ in _read(data, options.limit))
    settings = ("dtype", "rule", "max_new_tokens", "limit")
    return {
        **checkpoint_facts(source),
        **{name: getattr(options, name) for name in settings},
        "data": [
            {"path": str(path), "sha256": file_digest(path), "records": counts[str(path)]}
            for path in data
        ],
        "rankings": [
            {"name": one.name}
            | ({"sha256": file_digest(one.file), "facts": one.facts} if one.file else {})
            for one in find_rankings(options.rank)
        ],
        "keeps": parse_keeps(options.keep),
        "tools": tool_versions(),
    }
