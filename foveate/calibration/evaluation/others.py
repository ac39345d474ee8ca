"""Another question about the same picture: about another thing, so that its tokens are others."""

import hashlib
import os
from collections.abc import Sequence

from foveate.calibration.answers import normalise
from foveate.calibration.dataset import Record


def group_by_picture(records: Sequence[Record]) -> list[list[int]]:
    """Which records are about the same pictures or video: their ordinals, by first appearance."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, record in enumerate(records):
        paths = (os.path.realpath(path) for path in record.pictures)
        groups.setdefault((record.moving, *paths), []).append(number)
    return list(groups.values())


def find_other(asked: Record, others: Sequence[Record]) -> Record | None:
    """Choose the question to rank by in place of `asked`'s own, always the same for the same questions.

    It has another text and another answer. Where both have boxes these do not overlap; a question with
    boxes goes before one without, if the asked one has some. Captions, and questions of the scope
    "global", are about everything and are not taken.

    Args:
        asked: The question that is asked.
        others: Questions about the same picture; `asked` may be among them.

    Returns:
        The question; None where there is no such.
    """
    answers = set(map(normalise, asked.answers))
    found = [
        one
        for one in others
        if one.question.strip() != asked.question.strip()
        and one.measure == "exact"
        and one.tags.get("scope") != "global"
        and answers.isdisjoint(map(normalise, one.answers))
        and not any(mine.meets(its) for mine in asked.boxes for its in one.boxes)
    ]
    return min(found, key=lambda one: _order(asked, one), default=None)


def _order(asked: Record, other: Record) -> tuple[bool, str]:
    """Where a question stands in line: by boxes, then by chance that ids and texts alone decide."""
    names = "\n".join((asked.id, asked.question, other.id, other.question))
    return bool(asked.boxes) and not other.boxes, hashlib.sha256(names.encode()).hexdigest()
