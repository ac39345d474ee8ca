"""The user's questions: which to calibrate with and which to hold out, and how they are asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
        sha256: Of their file.
        unreadable: For each that could not be asked, by its id, why.
    """

    questions: Questions
    sha256: str
    unreadable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, questions: Questions) -> "Asked":
        """Nothing has been asked yet."""
        return cls(questions, file_digest(questions.path))

    @property
    def used(self) -> int:
        """How many could be asked."""
        return len(self.questions.records) - len(self.unreadable)

    def check(self) -> None:
        """DataError where none could be."""
        if not self.used:
            name, reason = next(iter(self.unreadable.items()))
            raise DataError(
                f"{self.questions.path}: none of {plural(len(self.unreadable), 'record')} could be "
                f"asked; the first is {name}: {reason}"
            )


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
    records = read_records(path, answers_needed=False)[: options.limit]
    if held_out is not None:
        return Questions(path, tuple(records)), asked
    order = {
        pictures: n for n, pictures in enumerate(dict.fromkeys(one.pictures for one in records))
    }
    second = tuple(one for one in records if order[one.pictures] % 2 and one.answers)
    if not second:
        return Questions(path, tuple(records)), None
    first = tuple(one for one in records if not order[one.pictures] % 2)
    return Questions(path, first), Questions(path, second)


def ask_all(pipe: Pipeline, questions: Questions, say: Say) -> Asked:
    """Ask every question with all visual tokens.

    Raises:
        DataError: None could be asked.
    """
    asked = Asked.of(questions)
    for number, record in enumerate(questions.records, start=1):
        _answer(pipe, record, 1.0, asked)
        say(_progress(number, asked))
    asked.check()
    return asked


def score_all(
    pipe: Pipeline, questions: Questions, keeps: Sequence[float], say: Say
) -> tuple[Asked, dict[float, Score]]:
    """Ask every question at each keep, and count the right answers.

    Raises:
        DataError: None could be asked.
    """
    asked = Asked.of(questions)
    right = dict.fromkeys(keeps, 0)
    for number, record in enumerate(questions.records, start=1):
        for keep in keeps:
            said = _answer(pipe, record, keep, asked)
            right[keep] += said is not None and is_right(said, record.answers, "exact")
        say(_progress(number, asked))
    asked.check()
    return asked, {keep: Score(asked.used, count) for keep, count in right.items()}


def _answer(pipe: Pipeline, record: Record, keep: float, asked: Asked) -> str | None:
    """One answer, or None and a note of why there is none."""
    if record.id in asked.unreadable:
        return None
    try:
        return pipe.generate(
            record.question, images=list(record.pictures), keep=keep, max_new_tokens=NEW_TOKENS
        ).text
    except (ImageError, PromptError, LimitError) as error:
        asked.unreadable[record.id] = str(error)
        return None


def _progress(number: int, asked: Asked) -> str:
    """How far it is."""
    lost = f", {len(asked.unreadable)} unreadable" if asked.unreadable else ""
    return f"{number}/{len(asked.questions.records)} questions{lost}"
