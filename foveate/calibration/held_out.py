"""Questions parted in two files, one to calibrate on and one to measure on; no picture is in both."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.atomic_write import replace_file
from foveate.calibration.dataset import ANSWERS, PICTURES, Record, read_documents
from foveate.calibration.training.examples import split
from foveate.errors import DataError

TRAINING, HELD_OUT = "training.jsonl", "held-out.jsonl"


@dataclass(frozen=True, slots=True)
class Line:
    """A record with the line that holds it.

    Attributes:
        record: What the line says.
        document: The line as JSON, its own where a line of the data has several questions.
        pictures: Where its pictures are from the folder of the data, whatever the line calls them.
    """

    record: Record
    document: dict[str, Any]
    pictures: tuple[str, ...]


def read_lines(source: Path, answers_needed: bool) -> list[Line]:
    """Read a data file, or all that a folder holds.

    Raises:
        DataError: None there, or one that is none; an id that stands twice.
    """
    root = os.path.realpath(source if source.is_dir() else source.parent)
    files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    if not files:
        raise DataError(f"{source} holds no .jsonl file; write questions into one")
    lines: list[Line] = []
    seen: dict[str, Path] = {}
    for path in files:
        for record, document in read_documents(path, answers_needed):
            if record.id in seen:
                raise DataError(
                    f"{path}: the id {record.id!r} is also in {seen[record.id]}; give each its own"
                )
            seen[record.id] = path
            shown = tuple(os.path.relpath(os.path.realpath(one), root) for one in record.pictures)
            lines.append(Line(record, document, shown))
    return lines


def part(
    lines: Sequence[Line], share: float, seed: int, limit: int | None
) -> tuple[list[Line], list[Line]]:
    """Part questions by picture: those to calibrate on, and a `share` of the pictures to measure on.

    Raises:
        DataError: All are about one picture.
    """
    return split(lines[:limit], share, seed)


def write_lines(
    path: Path, lines: Sequence[Line], change: Callable[[Line], dict[str, Any]] = lambda line: {}
) -> None:
    """Write records into a file, with pictures relative to its folder, and with changes of each.

    Answers that `change` gives stand in place of the record's.

    Raises:
        OutputError: The disk did not take it.
    """
    folder = os.path.realpath(path.parent)
    text = []
    for line in lines:
        places = map(os.path.realpath, line.record.pictures)
        shown = [os.path.relpath(place, folder) for place in places]
        (key,) = (name for name in PICTURES if name in line.document)
        pictures = {key: shown if key == "images" else shown[0]}
        changed = change(line)
        kept = {
            name: value
            for name, value in line.document.items()
            if name not in ANSWERS or not changed.keys() & set(ANSWERS)
        }
        text.append(json.dumps({**kept, **pictures, **changed}, ensure_ascii=False))
    replace_file(path, ("\n".join(text) + "\n").encode(), force=True)
