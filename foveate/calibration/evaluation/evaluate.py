"""Evaluation of a checkpoint or a bundle: every question asked with all visual tokens, and with fewer."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path

from foveate.bundle.reader import file_digest
from foveate.calibration.dataset import Record, read_records
from foveate.calibration.evaluation.journal import Journal, default_path, run_key
from foveate.calibration.evaluation.judge import judge
from foveate.calibration.evaluation.judged import OUTCOMES, UNREADABLE, Judged
from foveate.calibration.evaluation.options import EvaluateOptions
from foveate.calibration.evaluation.others import find_other, group_by_picture
from foveate.calibration.evaluation.result import Evaluation
from foveate.calibration.evaluation.subject import Evaluated, Subject
from foveate.calibration.evaluation.ways import parse_keeps
from foveate.calibration.progress import Meter
from foveate.errors import DataError, ImageError, LimitError, PromptError
from foveate.terminal import plural

NOT_KEYED = ("limit", "answers")
"""Options on which no answer depends."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of a data set.

    Attributes:
        number: Its place among all that are asked.
        data: The file.
        record: The question.
        other: Another one about the same picture; None where there is none.
    """

    number: int
    data: str
    record: Record
    other: Record | None


def evaluate(
    evaluated: Evaluated, data: Sequence[Path], options: EvaluateOptions, *, quiet: bool = True
) -> Evaluation | None:
    """Ask every question of some data sets with all visual tokens, and with those of every choice.

    A run that was stopped goes on where it was: what came of each question is kept aside.

    Args:
        evaluated: The checkpoint or the bundle.
        data: The records, as JSON Lines files.
        options: What is compared, and how.
        quiet: Do not show how far the run is.

    Returns:
        What came of it; None in all processes of a run but the main one.

    Raises:
        DataError: No data set, or one without a record that can be asked.
        KeepError: A keep that cannot be.
        OutputError: Answers cannot be kept aside.
        FoveateError: What loading it raises.
    """
    team = evaluated.team
    keeps, scenes = parse_keeps(options.keep), read_scenes(data, options.limit)
    measures = {one.record.measure for scene in scenes for one in scene}
    outcomes = [OUTCOMES[name] for name in OUTCOMES if name in measures]
    meter = Meter([*itertools.chain(*outcomes), UNREADABLE], quiet or team.index > 0)
    settings = {name: one for name, one in asdict(options).items() if name not in NOT_KEYED}
    done: list[tuple[int, Judged]] = []

    def stopped() -> str:
        return f"stopped after {plural(len(done), 'question')}; the same command goes on from there"

    with contextlib.ExitStack() as stack:
        with meter.stage(f"loading {evaluated.source}"):
            subject = stack.enter_context(evaluated.load())
        made = {"kind": evaluated.kind, **evaluated.facts, **subject.facts, **settings}
        key = run_key(made)
        journal = Journal(options.answers or default_path(key), key, team.index)
        stack.callback(journal.close)
        team.wait()
        stack.enter_context(_stopping(meter, stopped, team.index))
        mine = scenes[team.index :: team.count]
        with meter.stage(f"looking for answers in {journal.path}"):
            known = list(_known(mine, journal))
        done += known
        before = {number for number, _ in known}
        left = [[one for one in scene if one.number not in before] for scene in mine]
        meter.start(sum(map(len, left)), team.count)
        for scene in left:
            for number, judged in _judge_scene(subject, scene, options, journal):
                done.append((number, judged))
                meter.step(judged.outcome)
    seconds = max(team.gather([meter.seconds]))
    everything = team.gather(done)
    if team.index:
        return None
    judged_all = [judged for _, judged in sorted(everything, key=itemgetter(0))]
    if all(one.unreadable for one in judged_all):
        first = judged_all[0]
        raise DataError(
            f"none of {plural(len(judged_all), 'record')} could be asked; the first is {first.id}: "
            f"{first.unreadable}"
        )
    counts = Counter(one.data for one in judged_all)
    files = [
        {"path": str(path), "sha256": file_digest(path), "records": counts[str(path)]}
        for path in data
    ]
    described = {**made, "keeps": keeps, "limit": options.limit, "data": files}
    return Evaluation(described, judged_all, seconds, team.count)


def read_scenes(data: Sequence[Path], limit: int | None) -> list[list[Asked]]:
    """The questions of all files, those about the same pictures together, each with another one.

    Raises:
        DataError: A file that is no data set, or that is given twice.
    """
    if len({path.resolve() for path in data}) < len(data):
        raise DataError(f"{', '.join(map(str, data))}: a file stands twice; give each once")
    records, files, wanted = [], [], []
    for path in data:
        found = read_records(path)
        records += found
        files += [str(path)] * len(found)
        wanted += [limit is None or number < limit for number in range(len(found))]
    scenes = []
    for members in group_by_picture(records):
        others = [records[number] for number in members]
        asked = [
            Asked(number, files[number], records[number], find_other(records[number], others))
            for number in members
            if wanted[number]
        ]
        if asked:
            scenes.append(asked)
    return scenes


def _known(scenes: Sequence[Sequence[Asked]], journal: Journal) -> Iterator[tuple[int, Judged]]:
    """What came of questions before, with their numbers."""
    for asked in (one for scene in scenes for one in scene):
        with contextlib.suppress(OSError):
            found = journal.find(journal.key(asked.record, asked.other), asked.record, asked.data)
            if found is not None:
                yield asked.number, found


def _judge_scene(
    subject: Subject, scene: Sequence[Asked], options: EvaluateOptions, journal: Journal
) -> Iterator[tuple[int, Judged]]:
    """Judge questions about the same pictures, which are encoded once, and keep each aside."""
    opened = None
    for asked in scene:
        record, other = asked.record, asked.other
        try:
            key = journal.key(record, other)
            opened = opened or subject.open(record)
            judged = judge(opened, record, other, subject.rankings, options, asked.data)
        except (ImageError, LimitError, PromptError, DataError, OSError) as error:
            yield asked.number, Judged.without_answer(asked.data, record, str(error))
            continue
        journal.note(key, judged)
        yield asked.number, judged


@contextlib.contextmanager
def _stopping(meter: Meter, remark: Callable[[], str], index: int) -> Iterator[None]:
    """Say, where an interrupt ends the block, what there is; only the main process raises it on."""
    try:
        yield
    except KeyboardInterrupt:
        meter.stop(remark())
        if index:
            raise SystemExit(130) from None
        raise
