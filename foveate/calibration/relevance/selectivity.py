"""Whether relevance is about the question: answers kept by its own map, and by another question's.

Of each picture with several questions, every question is answered with the tokens that its own relevance
ranks first, and with those of the next question about the same picture. What finds things whatever is
asked keeps as many answers either way.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from foveate.atomic_write import replace_file
from foveate.calibration.dataset import Record
from foveate.calibration.progress import Meter
from foveate.calibration.ranking import top
from foveate.calibration.relevance.answered import Asked, Judging, ask
from foveate.calibration.relevance.manifest import Manifest
from foveate.calibration.relevance.propagation import MODES
from foveate.calibration.relevance.trial import KEEPS
from foveate.calibration.torch_model import TorchModel
from foveate.calibration.training.labels import contrast, label
from foveate.errors import DataError
from foveate.runtime.keep import kept_count
from foveate.terminal import plural, table

FILE = "selectivity.json"
QUESTIONS = 200
"""How many questions are measured, about."""
PER_PICTURE = 4
"""The most questions about one picture that are measured."""

Map = NDArray[np.float32]
FORMS: dict[str, Callable[[Map, Sequence[Map]], Map | None]] = {
    "R_v": lambda own, others: own,
    "label": lambda own, others: label(own),
    "contrast": lambda own, others: label(contrast(own, others)),
}
"""What is made of a question's R_v, and of that of the others about its picture, by name."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to rank.

    Attributes:
        mode: How R_v was computed.
        form: What was made of it: one of `FORMS`.
        own: Answers that stayed the same by the question's own ranking, for each ratio.
        other: By that of another question about the same picture.
        overlap: How much of what both rankings keep is the same, from 0 to 1, on average.
    """

    mode: str
    form: str
    own: tuple[int, ...]
    other: tuple[int, ...]
    overlap: tuple[float, ...]


class Selectivity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured.

    Attributes:
        key: Of the store's settings.
        questions: How many questions were ranked.
        pictures: About how many pictures.
        keeps: The ratios of visual tokens kept.
        rows: Every mode in every form.
    """

    key: str
    questions: int
    pictures: int
    keeps: tuple[float, ...]
    rows: tuple[Row, ...]
    format: Literal["foveate-selectivity"] = "foveate-selectivity"


def several(records: Sequence[Record]) -> list[list[Record]]:
    """The records by picture, of pictures with several questions, in an order that their names' hash gives.

    Raises:
        DataError: There is none.
    """
    groups: defaultdict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.names].append(record)
    found = [group for group in groups.values() if len(group) > 1]
    if not found:
        raise DataError(
            "whether relevance is about the question is measured with another question about the same "
            "picture, and no picture has two; write several a picture, or leave out --report"
        )
    return sorted(found, key=lambda group: hashlib.sha256(repr(group[0].names).encode()).digest())


def measure_selectivity(
    model: TorchModel,
    records: Sequence[Record],
    judging: Judging,
    made: Manifest,
    *,
    quiet: bool = True,
) -> Selectivity:
    """Count the answers that stay the same by a question's own relevance and by another's.

    Raises:
        DataError: No picture with two questions that the model answers rightly.
    """
    groups = several(records)
    meter = Meter(("measured",), quiet)
    meter.start(min(QUESTIONS, sum(len(group[:PER_PICTURE]) for group in groups)), 1)
    names: list[tuple[str, str]] = [(mode, form) for mode in MODES for form in FORMS]
    totals = {name: np.zeros((3, len(KEEPS))) for name in names}
    questions = pictures = 0
    for group in groups:
        if questions >= QUESTIONS:
            break
        usable = (one for one in (ask(model, record, judging) for record in group))
        asked = [one for one in usable if isinstance(one, Asked) and one.usable][:PER_PICTURE]
        if len(asked) < 2:
            continue
        for name, found in _ranked(model, asked, judging.most):
            totals[name] += found
        questions, pictures = questions + len(asked), pictures + 1
        for _ in asked:
            meter.step("measured")
    if not questions:
        raise DataError(
            "no picture has two questions that the model answers rightly; take others, or leave out "
            "--report"
        )
    rows = tuple(
        Row(mode, form, counts(own), counts(other), tuple(map(float, shared / questions)))
        for (mode, form), (own, other, shared) in totals.items()
    )
    return Selectivity(made.key(), questions, pictures, KEEPS, rows)


def counts(values: NDArray[np.float64]) -> tuple[int, ...]:
    """Values as the whole numbers that they are."""
    return tuple(map(int, values))


def _ranked(
    model: TorchModel, asked: Sequence[Asked], longest: int
) -> Iterator[tuple[tuple[str, str], NDArray[np.float64]]]:
    """Of one picture's questions: own, other and overlap float64 [3, keeps] for each mode and form."""
    answers: dict[tuple[int, bytes], bool] = {}

    def stays(number: int, kept: NDArray[np.int64]) -> bool:
        """Whether a question's answer stays the same with these tokens, computed once."""
        key = number, kept.tobytes()
        if key not in answers:
            one = asked[number]
            most = min(len(one.tokens) + 1, longest)
            answers[key] = model.answer(one.question, kept, most) == one.tokens
        return answers[key]

    for mode in MODES:
        maps = [
            model.relevance(one.question, one.tokens, mode).float().cpu().numpy() for one in asked
        ]
        for form, make in FORMS.items():
            ranked = [make(own, [one for one in maps if one is not own]) for own in maps]
            found = np.zeros((3, len(KEEPS)))
            for place, keep in enumerate(KEEPS):
                count = kept_count(keep, len(maps[0]))
                kept = [None if one is None else top(one, count) for one in ranked]
                for number, mine in enumerate(kept):
                    its = kept[(number + 1) % len(kept)]
                    found[0, place] += mine is not None and stays(number, mine)
                    found[1, place] += its is not None and stays(number, its)
                    if mine is not None and its is not None:
                        found[2, place] += len(np.intersect1d(mine, its)) / count
            yield (mode, form), found


def write_selectivity(folder: Path, found: Selectivity) -> None:
    """Write what was measured beside a store's shards.

    Raises:
        OutputError: The disk did not take it.
    """
    content = msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"
    replace_file(folder / FILE, content, force=True)


def read_selectivity(folder: Path, made: Manifest) -> Selectivity | None:
    """What an earlier run of a store measured; None where there is none, or one of other settings."""
    try:
        found = msgspec.json.decode((folder / FILE).read_bytes(), type=Selectivity)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.key == made.key() else None


def selectivity_facts(found: Selectivity | None) -> dict[str, Any] | None:
    """For JSON; None where it was not measured."""
    facts: dict[str, Any] | None = msgspec.to_builtins(found)
    return facts


def describe_selectivity(found: Selectivity) -> str:
    """For people: a row a mode and form; answers that stay by own and other ranking, in percent."""
    rows = [("mode", "form", *(f"{keep:.0%}" for keep in found.keeps))]
    for row in found.rows:
        cells = (
            f"{100 * own / found.questions:.1f} − {100 * other / found.questions:.1f} = "
            f"{100 * (own - other) / found.questions:.1f}"
            for own, other in zip(row.own, row.other, strict=True)
        )
        rows.append((row.mode, row.form, *cells))
    return (
        f"is relevance about the question? {plural(found.questions, 'answer')} about "
        f"{plural(found.pictures, 'picture')}: % that stay the same by the question's own ranking − by "
        f"that of another question about the picture, by visual tokens kept\n{table(rows)}"
    )
