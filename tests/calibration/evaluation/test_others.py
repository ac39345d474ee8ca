"""The other question about a picture: about another thing, and always the same one."""

from dataclasses import replace
from pathlib import Path

from foveate.calibration.boxes import Box
from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.others import find_other, group_by_picture

LEFT, RIGHT = Box(0, (0.0, 0.0, 0.4, 1.0)), Box(0, (0.5, 0.0, 1.0, 1.0))


def record(name: str, answer: str, *boxes: Box, **more: object) -> Record:
    found = Record(name, (Path("a.png"),), f"What is {name}?", (answer,), boxes=boxes)
    return replace(found, **more)  # type: ignore[arg-type]


def test_it_is_about_another_thing() -> None:
    asked = record("1", "cat", LEFT)
    for wrong in (
        record("2", "The cat.", RIGHT),
        record("2", "dog", Box(0, (0.3, 0.0, 0.6, 1.0))),
        record("2", "dog", RIGHT, question=asked.question),
        record("2", "dog", RIGHT, answers=("dog", "cat")),
        record("2", "dog", tags={"scope": "global"}),
        record("2", "dog", measure="words"),
    ):
        assert find_other(asked, [asked, wrong]) is None
        assert find_other(asked, [asked, wrong, record("3", "dog", RIGHT)]) is not None
    assert find_other(asked, [asked, record("2", "dog", Box(1, LEFT.box))]) is not None


def test_one_with_boxes_goes_first_and_the_order_of_the_file_does_not_matter() -> None:
    asked = record("1", "cat", LEFT)
    others = [record(str(n), f"dog {n}") for n in range(2, 9)]
    boxed = record("9", "dog", RIGHT)
    assert find_other(asked, [*others, boxed]) == boxed
    found = find_other(asked, others)
    assert found == find_other(asked, others[::-1]) is not None
    chosen = {find_other(record(str(n), "cat", LEFT), others).id for n in range(20, 60)}  # type: ignore[union-attr]
    assert len(chosen) > 3


def test_questions_are_grouped_by_the_files_that_they_show(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to("a.png")
    names = ("a.png", "b.png", "x/../a.png", "link.png")
    (tmp_path / "x").mkdir()
    records = [replace(record("1", "cat"), pictures=(tmp_path / name,)) for name in names]
    records.append(replace(records[0], moving=True))
    records.append(replace(records[0], pictures=(tmp_path / "a.png", tmp_path / "b.png")))
    assert group_by_picture(records) == [[0, 2, 3], [1], [4], [5]]
