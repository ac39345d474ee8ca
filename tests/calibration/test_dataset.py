"""Data sets: what is read, and what is refused with its line and its fix."""

import json
from pathlib import Path

import pytest

from foveate.calibration.dataset import Record, read_records
from foveate.errors import DataError

WHOLE = {"id": "1", "image": "a.png", "question": "What?", "answer": "cat"}


def write(folder: Path, *lines: object) -> Path:
    path = folder / "data.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def refused(path: Path, *words: str, answers_needed: bool = True) -> None:
    with pytest.raises(DataError) as caught:
        read_records(path, answers_needed)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_all_forms(tmp_path: Path) -> None:
    several = {
        "id": "2",
        "images": ["b.png", "/c.png"],
        "question": "W\u2028?",
        "answers": ["x", "y"],
    }
    tagged = {**WHOLE, "id": "3", "task": "colour", "scope": "local", "other": [1]}
    path = write(tmp_path, "\ufeff" + json.dumps(WHOLE), " ", json.dumps(several, ensure_ascii=False),
                 json.dumps(tagged) + "\r", "")  # fmt: skip
    assert read_records(path) == [
        Record("1", (tmp_path / "a.png",), "What?", ("cat",), ("a.png",)),
        Record(
            "2", (tmp_path / "b.png", Path("/c.png")), "W\u2028?", ("x", "y"), ("b.png", "/c.png")
        ),
        Record("3", (tmp_path / "a.png",), "What?", ("cat",), ("a.png",),
               {"task": "colour", "scope": "local"}),
    ]  # fmt: skip


def test_a_record_may_be_about_a_video(tmp_path: Path) -> None:
    film = {"id": "2", "video": "a.mp4", "question": "What?", "answer": "cat"}
    still, moving = read_records(write(tmp_path, WHOLE, film))
    assert still.media == {"images": [tmp_path / "a.png"]}
    assert moving.media == {"video": tmp_path / "a.mp4"}
    assert (still.moving, moving.moving, moving.names) == (False, True, ("a.mp4",))


def test_an_answer_may_be_left_out_where_that_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, {key: value for key, value in WHOLE.items() if key != "answer"})
    assert read_records(path, answers_needed=False)[0].answers == ()
    refused(path, "line 1", "no answer", "give 'answer'")


def test_a_line_may_have_several_questions(tmp_path: Path) -> None:
    questions = [
        {"question": "What?", "answer": "cat", "box": [0, 0, 0.5, 1], "task": "animal"},
        {"id": "mine", "question": "Who?", "answers": ["Tom", "Tim"], "measure": "words"},
    ]
    line = {"id": "7", "image": "a.png", "task": "all", "scope": "local", "questions": questions}
    first, second = read_records(write(tmp_path, line))
    assert (first.id, second.id, first.question, second.answers) == (
        "7-1", "mine", "What?", ("Tom", "Tim")
    )  # fmt: skip
    assert first.pictures == second.pictures == (tmp_path / "a.png",)
    assert first.boxes[0].box == (0, 0, 0.5, 1)
    assert (first.measure, second.measure) == ("exact", "words")
    assert (first.tags["task"], second.tags) == ("animal", {"task": "all", "scope": "local"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"questions": []}, ("'questions' is no list of at least one",)),
        ({"questions": ["?"]}, ("'questions' item 1: not an object",)),
        ({"questions": [{"question": "?"}]}, ("item 1: no answer",)),
        ({"question": "?", "questions": [{}]}, ("'question' beside 'questions'", "move")),
        ({"box": [0, 0, 1, 1], "questions": [{}]}, ("'box' beside 'questions'",)),
        ({"questions": [{"image": "b.png"}]}, ("'image' belongs beside 'questions'",)),
        ({"questions": [{"question": "?", "answer": "a", "box": [0, 0, 2, 1]}]}, ("item 1: 'box' is",)),
        ({"id": "1", "questions": [{"question": "?", "answer": "a", "id": "1"}]}, ("that of line 1",)),
    ],
)  # fmt: skip
def test_questions_that_are_none(
    tmp_path: Path, line: dict[str, object], words: tuple[str, ...]
) -> None:
    whole = {"id": "2", "image": "a.png", **line}
    refused(write(tmp_path, WHOLE, whole), "line 2", *words)
    if "item 1: no answer" in words:
        del whole["id"]
        refused(write(tmp_path, WHOLE, whole), "line 2", "no 'id', and none beside 'questions'")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ("not JSON", "one object a line")),
        ("[" * 100_000, ("not JSON",)),
        ("[]", ("not an object",)),
        ('{"id": "2", "id": "3"}', ("'id' stands twice",)),
        ({**WHOLE, "id": "1"}, ("'1' is that of line 1",)),
        ({**WHOLE, "id": 2}, ("'id' is 2, not text", "quotes")),
        ({**WHOLE, "id": "2", "question": " "}, ("'question' is empty",)),
        ({"id": "2", "image": "a.png", "answer": "cat"}, ("no 'question'",)),
        ({**WHOLE, "id": "2", "answer": None}, ("'answer' is null",)),
        ({**WHOLE, "id": "2", "answers": ["cat"]}, ("both 'answer' and 'answers'",)),
        ({**WHOLE, "id": "2", "images": ["a.png"]}, ("'image' and 'images'", "exactly one")),
        ({"id": "2", "question": "?", "answer": "cat"}, ("no picture",)),
        ({"id": "2", "images": [], "question": "?", "answer": "cat"}, ("'images' is no list",)),
        ({"id": "2", "images": "a.png", "question": "?", "answer": "c"}, ("'images' is no list",)),
        ({"id": "2", "images": ["a", 1], "question": "?", "answer": "c"}, ("'images' item 2 is 1",)),
        ({"id": "2", "video": ["a.mp4"], "question": "?", "answer": "c"}, ("'video' is",)),
        ({**WHOLE, "id": "2", "video": "a.mp4"}, ("'image' and 'video'", "exactly one")),
        ({**WHOLE, "id": "2", "task": 7}, ("'task' is 7",)),
        ({**WHOLE, "id": "2", "measure": "word"}, ("'measure' is", "give", "words")),
        ({**WHOLE, "id": "2", "box": [1, 2, 3, 4]}, ("'box' is [1, 2, 3, 4]", "divide pixels")),
        ('{"id": "\\ud800", "image": "a", "question": "?", "answer": "c"}', ("surrogate",)),
    ],
)  # fmt: skip
def test_a_line_that_is_no_record(tmp_path: Path, line: object, words: tuple[str, ...]) -> None:
    refused(write(tmp_path, WHOLE, "", line), "line 3", *words)


def test_a_file_that_is_no_data_set(tmp_path: Path) -> None:
    refused(tmp_path / "none.jsonl", "no such file")
    refused(tmp_path, "cannot be read")
    refused(write(tmp_path, "", " "), "no record")
    (tmp_path / "data.jsonl").write_bytes(b"\n\n\xff")
    refused(tmp_path / "data.jsonl", "line 3", "UTF-8")
