"""A data set of questions about pictures and videos: JSON Lines, one object a line."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.calibration.boxes import BOXES, Box, read_boxes
from foveate.errors import DataError

PICTURES = ("image", "images", "video")
ANSWERS = ("answer", "answers")
TAGS = ("task", "scope")
MEASURES = ("exact", "words")


@dataclass(frozen=True, slots=True)
class Record:
    """One question.

    Attributes:
        id: Its name, unlike any other's in the data set.
        pictures: Where its pictures, or its one video, should be; reading a data set does not open them.
        question: Its text.
        answers: The right answers, any of which will do; empty only where the caller allows it.
        names: The pictures or the video as the data set names them.
        tags: Its `task` and `scope`, where it has them.
        moving: Whether it is about a video.
        boxes: The parts that the question is about; empty where the data set does not say.
        measure: How an answer is measured: "exact", right or wrong; or "words", by the share of its words.
    """

    id: str
    pictures: tuple[Path, ...]
    question: str
    answers: tuple[str, ...]
    names: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    moving: bool = False
    boxes: tuple[Box, ...] = ()
    measure: str = "exact"

    @property
    def media(self) -> dict[str, Any]:
        """Its pictures or its video, as `Request` takes them by name."""
        return {"video": self.pictures[0]} if self.moving else {"images": list(self.pictures)}


def read_records(path: Path, answers_needed: bool = True) -> list[Record]:
    """Read a data set whole; keys that it need not have are left out.

    Args:
        path: The file; pictures are relative to its folder.
        answers_needed: Refuse a record without an answer.

    Raises:
        DataError: No such file, no record in it, or a line that is no record; names the line.
    """
    return [record for record, _ in read_documents(path, answers_needed)]


def read_documents(path: Path, answers_needed: bool = True) -> list[tuple[Record, dict[str, Any]]]:
    """Read a data set's records, each with the object that a line of its own would hold.

    Raises:
        DataError: As `read_records`.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; give a JSON Lines file") from error
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({reason}); give a JSON Lines file") from error
    found: list[tuple[Record, dict[str, Any]]] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            for record, document in _records(line, path.parent, answers_needed):
                if record.id in lines:
                    raise DataError(
                        f"the id {record.id!r} is that of line {lines[record.id]}; give each its own"
                    )
                lines[record.id] = number
                found.append((record, document))
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    if not found:
        raise DataError(f"{path}: no record in it; write one JSON object a line")
    return found


def _records(line: str, folder: Path, answers_needed: bool) -> list[tuple[Record, dict[str, Any]]]:
    """One line's record, or those of its several questions, each with its own object."""
    try:
        document = json.loads(line, object_pairs_hook=_object)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"not JSON ({reason}); write one object a line") from error
    if not isinstance(document, dict):
        raise DataError(
            'not an object; write {"id": "1", "image": "1.png", "question": "…", "answer": "…"}'
        )
    if "questions" not in document:
        return [(_record(document, folder, answers_needed), document)]
    found = []
    for number, question in enumerate(_questions(document), start=1):
        try:
            merged = _merged(document, question, number)
            found.append((_record(merged, folder, answers_needed), merged))
        except DataError as error:
            raise DataError(f"'questions' item {number}: {error}") from error
    return found


def _questions(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The questions of a line that has several."""
    for key in ("question", *ANSWERS, *BOXES):
        if key in document:
            raise DataError(f"{key!r} beside 'questions'; move it into the question that it is of")
    questions = document["questions"]
    if not isinstance(questions, list) or not questions:
        raise DataError(
            "'questions' is no list of at least one question; write "
            '[{"question": "…", "answer": "…"}]'
        )
    return questions


def _merged(document: dict[str, Any], question: Any, number: int) -> dict[str, Any]:
    """One of a line's questions as a document of its own; what it does not say, the line says."""
    if not isinstance(question, dict):
        raise DataError('not an object; write {"question": "…", "answer": "…"}')
    for key in PICTURES:
        if key in question:
            raise DataError(f"{key!r} belongs beside 'questions', which are all about it; move it")
    if "id" not in question:
        if "id" not in document:
            raise DataError("no 'id', and none beside 'questions'; give one of the two")
        question = {**question, "id": f"{_text(document, 'id')}-{number}"}
    shared = {name: value for name, value in document.items() if name != "questions"}
    return {**shared, **question}


def _record(document: dict[str, Any], folder: Path, answers_needed: bool) -> Record:
    """One question's record."""
    names = _pictures(document)
    moving = "video" in document
    return Record(
        id=_text(document, "id"),
        pictures=tuple(folder / name for name in names),
        question=_text(document, "question"),
        answers=_answers(document, answers_needed),
        names=names,
        moving=moving,
        tags={name: _text(document, name) for name in TAGS if name in document},
        boxes=read_boxes(document, None if moving else len(names)),
        measure=_measure(document),
    )


def _measure(document: dict[str, Any]) -> str:
    """How a record's answer is measured."""
    measure = document.get("measure", MEASURES[0])
    if measure not in MEASURES:
        raise DataError(f'\'measure\' is {json.dumps(measure)[:40]}; give "exact" or "words"')
    return str(measure)


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object, which may hold no key twice."""
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise DataError(f"{key!r} stands twice; keep one")
        document[key] = value
    return document


def _pictures(document: dict[str, Any]) -> tuple[str, ...]:
    """The names of a record's pictures, or of its video."""
    given = [key for key in PICTURES if key in document]
    if len(given) != 1:
        found = " and ".join(f"{key!r}" for key in given) if given else "no picture"
        raise DataError(f"{found}; give exactly one of 'image', 'images' and 'video'")
    return _texts(document, given[0])


def _answers(document: dict[str, Any], needed: bool) -> tuple[str, ...]:
    """A record's right answers."""
    given = [key for key in ANSWERS if key in document]
    if len(given) == 2:
        raise DataError("both 'answer' and 'answers'; give one of them")
    if not given and needed:
        raise DataError("no answer; give 'answer', or 'answers' where several are right")
    return _texts(document, given[0]) if given else ()


def _texts(document: dict[str, Any], key: str) -> tuple[str, ...]:
    """The texts of a key: where its name is a plural, of a list of at least one."""
    if not key.endswith("s"):
        return (_text(document, key),)
    values = document[key]
    if not isinstance(values, list) or not values:
        raise DataError(f'{key!r} is no list of at least one text; write ["…"]')
    return tuple(_checked(value, f"{key!r} item {n}") for n, value in enumerate(values, start=1))


def _text(document: dict[str, Any], key: str) -> str:
    """A text that is there and not blank."""
    if key not in document:
        raise DataError(f"no {key!r}; every record needs one")
    return _checked(document[key], f"{key!r}")


def _checked(value: Any, name: str) -> str:
    """A value that is text, not blank, and can be written down again."""
    if not isinstance(value, str):
        shown = json.dumps(value, default=str)[:40]
        raise DataError(f"{name} is {shown}, not text; put it in double quotes")
    if not value.strip():
        raise DataError(f"{name} is empty; fill it in, or leave the record out")
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        raise DataError(f"{name} holds half a surrogate pair; write the whole character")
    return value
