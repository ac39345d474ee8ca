"""The user's questions: which to calibrate with and which to hold out, and how they are asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.bundle.reader import file_digest
from foveate.calibration.answers import is_right
from foveate.calibration.dataset import Record, read_records
from foveate.calibration.evaluation.result import Score
from foveate.errors import DataError, ImageError, LimitError, PromptError
from foveate.export.quantization.options import QuantizationOptions
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


@dataclass(slots=True)
class Asked:
    """What came of asking some questions.

    Attributes:
        questions: Which.
        unreadable: For each that could not be asked, by its id, why.
    """

    questions: Questions
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """How many could be asked."""
        return len(self.questions.records) - len(self.unreadable)

    def facts(self) -> dict[str, Any]:
        """For JSON; a path says too much of the machine, so the file's name is all."""
        return {
            "data": self.questions.path.name,
            "sha256": file_digest(self.questions.path),
            "records": len(self.questions.records),
            "used": self.used,
            "unreadable": list(self.unreadable),
        }


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
    pipe: Pipeline, questions: Questions, keeps: Sequence[float], say: Say
) -> tuple[Asked, dict[float, Score]]:
    """Ask every question at each keep, and count the right answers.

    Raises:
        DataError: None could be asked.
    """
    asked, right = Asked(questions), dict.fromkeys(keeps, 0)
    for number, record in enumerate(questions.records, start=1):
        try:
            for keep in keeps:
                said = pipe.generate(
                    record.question,
                    **record.media,
                    keep=keep,
                    max_new_tokens=NEW_TOKENS,
                )
                right[keep] += is_right(said.text, record.answers, "exact")
        except (ImageError, PromptError, LimitError) as error:
            asked.unreadable[record.id] = str(error)
        lost = f", {len(asked.unreadable)} unreadable" if asked.unreadable else ""
        say(f"{number}/{len(questions.records)} questions{lost}")
    if not asked.used:
        name, reason = next(iter(asked.unreadable.items()))
        raise DataError(
            f"{questions.path}: none of {plural(len(asked.unreadable), 'record')} could be "
            f"asked; the first is {name}: {reason}"
        )
    return asked, {keep: Score(asked.used, count) for keep, count in right.items()}
