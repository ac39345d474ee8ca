"""The user's questions: which to calibrate with and which to hold out, and how they are asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.bundle.reader import file_digest
from foveate.calibration.answers import ENOUGH, answer_worth
from foveate.calibration.dataset import Record, read_records
from foveate.calibration.evaluation.intervals import Score
from foveate.errors import DataError, ImageError, LimitError, PromptError
from foveate.export.quantization.options import QuantizationOptions
from foveate.runtime.keep import Keep
from foveate.runtime.pipeline import Pipeline
from foveate.terminal import plural

NEW_TOKENS = 64

Say = Callable[[str], None]
"""Told how far a stage is."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Some records of a data set.

    Attributes:
        path: The file.
        records: Those that were chosen.
    """

    path: Path
    records: tuple[Record, ...]


def choose_questions(options: QuantizationOptions) -> tuple[Questions | None, Questions | None]:
    """The questions to calibrate with, and those to ask before and after; None for none.

    Without `evaluate`, records of every other picture are held out of the calibration, if they have
    answers; where no record has one, or all are of one picture, none is.

    Raises:
        DataError: A file that cannot be read, or holds no records.
    """
    path, held_out = options.calibration, options.evaluate
    asked = None
    if held_out is not None:
        asked = Questions(held_out, tuple(read_records(held_out)[: options.limit]))
    if path is None:
        return None, asked
    records = tuple(read_records(path, answers_needed=False)[: options.limit])
    pictures = list(dict.fromkeys(one.pictures for one in records))
    every_other = set(pictures[1::2])
    second = tuple(one for one in records if one.pictures in every_other and one.answers)
    if asked or not second:
        return Questions(path, records), asked
    first = tuple(one for one in records if one.pictures not in every_other)
    return Questions(path, first), Questions(path, second)


def score_all(
    pipe: Pipeline, questions: Questions, keeps: Sequence[Keep], say: Say
) -> tuple[dict[str, Any], dict[Keep, Score]]:
    """Ask every question at each keep, and count the right answers.

    Returns:
        What was asked, for JSON, where a path would say too much of the machine, so that the file's
        name is all; and the answers at each keep.

    Raises:
        DataError: None could be asked.
    """
    records, right = questions.records, dict.fromkeys(keeps, 0)
    unreadable: dict[str, str] = {}
    for number, record in enumerate(records, start=1):
        try:
            for keep in keeps:
                said = pipe.generate(
                    record.question,
                    **record.media,
                    keep=keep,
                    max_new_tokens=NEW_TOKENS,
                    temperature=0,
                )
                worth = answer_worth(said.text, record.answers, record.measure, "exact")
                right[keep] += worth >= ENOUGH
        except (ImageError, PromptError, LimitError) as error:
            unreadable[record.id] = str(error)
        lost = f", {len(unreadable)} unreadable" if unreadable else ""
        say(f"{number}/{len(records)} questions{lost}")
    used = len(records) - len(unreadable)
    if not used:
        name, reason = next(iter(unreadable.items()))
        raise DataError(
            f"{questions.path}: none of {plural(len(unreadable), 'record')} could be "
            f"asked; the first is {name}: {reason}"
        )
    asked = {
        "data": questions.path.name,
        "sha256": file_digest(questions.path),
        "records": len(records),
        "used": used,
        "unreadable": list(unreadable),
    }
    return asked, {keep: Score(used, count) for keep, count in right.items()}
