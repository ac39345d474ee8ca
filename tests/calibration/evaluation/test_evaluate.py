"""Evaluation of nano and its bundle: whole runs, stopped ones, several processes, and what the verb says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foveate.bundle.reader import Bundle as OpenedBundle
from foveate.calibration.evaluation import evaluate as evaluating
from foveate.calibration.evaluation.evaluate import evaluate, read_scenes
from foveate.calibration.evaluation.options import EvaluateOptions
from foveate.calibration.evaluation.result import Evaluation, evaluation_facts
from foveate.errors import DataError
from tests.calibration.conftest import DATA
from tests.calibration.evaluation.conftest import checkpoint
from tests.calibration.processes import run_two_processes
from tests.command import invoke, refused
from tests.conftest import NANO

SMALL = EvaluateOptions(
    keep="0.25,4", ways=("own", "other", "random", "one-token"), max_new_tokens=8, limit=6
)
TIMES = ("seconds", "processes")


def run(data: Path, answers: Path, options: EvaluateOptions = SMALL) -> Evaluation:
    evaluation = evaluate(checkpoint(), [data], replace(options, answers=answers))
    assert evaluation is not None
    return evaluation


def facts(evaluation: Evaluation) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(evaluation_facts(evaluation)))
    return {name: value for name, value in found.items() if name not in TIMES}


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The first six questions of two scenes."""
    return run(scenes, tmp_path_factory.mktemp("whole") / "answers.jsonl")


def test_the_result(whole: Evaluation, scenes: Path) -> None:
    found = facts(whole)
    assert (found["format"], found["version"]) == ("foveate-evaluation", 2)
    assert (found["kind"], found["records"], found["data"][0]["records"]) == ("checkpoint", 6, 6)
    assert [one["id"] for one in found["answers"]] == ["1-1", "1-2", "1-3", "1-4", "2-1", "2-2"]
    assert found["answers"][4]["other"] in ("2-2", "2-3", "2-4")
    assert [(one["kind"], one["name"]) for one in found["groups"]] == [
        ("all", ""),
        ("task", "letter"),
    ]
    everything = found["groups"][0]
    assert [(one["way"], one["keep"]) for one in everything["rows"]] == [
        ("own", 0.25), ("own", 4), ("other", 0.25), ("other", 4), ("random", 0.25), ("random", 4),
        ("one-token", None),
    ]  # fmt: skip
    for own, other, gap in zip(
        everything["rows"][:2], everything["rows"][2:4], found["selectivity"], strict=True
    ):
        assert gap["keep"] == own["keep"]
        assert gap["points"]["value"] == pytest.approx(
            own["kept"]["value"] - other["kept"]["value"]
        )
    assert [len(one["answers"]) for one in [found]] == [6]
    assert len(read_scenes([scenes], None)) == 2


def test_a_stopped_run_goes_on_and_gives_the_same(
    whole: Evaluation, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, judge, asked = tmp_path / "answers.jsonl", evaluating.judge, []

    def stop(*arguments: Any) -> Any:
        asked.append(arguments[1].id)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return judge(*arguments)

    monkeypatch.setattr(evaluating, "judge", stop)
    with pytest.raises(KeyboardInterrupt):
        run(scenes, answers)
    # As a process leaves it that is killed while it writes.
    answers.write_bytes(answers.read_bytes() + b'{"key": "x", "judged": {"da')
    assert facts(run(scenes, answers)) == facts(whole)
    assert asked == ["1-1", "1-2", "1-3", "1-3", "1-4", "2-1", "2-2"]
    again = run(scenes, answers)
    assert (facts(again), len(asked)) == (facts(whole), 7)
    run(scenes, answers, replace(SMALL, seed=1))
    assert len(asked) == 13


def test_a_changed_picture_or_question_is_asked_again(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in scenes.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data, answers, asked, judge = tmp_path / scenes.name, tmp_path / "answers", [], evaluating.judge

    def note(*arguments: Any) -> Any:
        asked.append(arguments[1].id)
        return judge(*arguments)

    monkeypatch.setattr(evaluating, "judge", note)
    options = replace(SMALL, keep="4", ways=("own",), limit=5)
    run(data, answers, options)
    (tmp_path / "scene-2.png").write_bytes((tmp_path / "scene-1.png").read_bytes())
    lines = data.read_text().replace('"id": "1"', '"task": "seen", "id": "1"')
    data.write_text(
        lines.replace('"answer": "', '"answers": ["', 1).replace('", "box"', '", "?"], "box"', 1)
    )
    again = run(data, answers, options)
    assert asked == ["1-1", "1-2", "1-3", "1-4", "2-1", "1-1", "2-1"]
    assert again.judged[1].tags == {"task": "letter"}


def test_two_processes_give_the_same(whole: Evaluation, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run_two_processes(
        "evaluate", NANO, scenes, "--limit", 6, "--device", "cpu", "--keep", SMALL.keep,
        "--ways", ",".join(SMALL.ways), "--max-new-tokens", 8, "--json", out,
        "--answers", tmp_path / "answers",
    )  # fmt: skip
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["processes"] == 2
    assert {name: value for name, value in found.items() if name not in TIMES} == facts(whole)
    assert done.stdout.startswith("selectivity: ")


def test_unreadable_questions_are_counted_and_asked_again(scenes: Path, tmp_path: Path) -> None:
    gone = {"id": "gone", "image": "gone.png", "question": "What?", "answer": "cat"}
    data = tmp_path / "data.jsonl"
    line = json.loads(scenes.read_text().splitlines()[0])
    data.write_text(
        f"{json.dumps({**line, 'image': str(scenes.parent / line['image'])})}\n{json.dumps(gone)}"
    )
    options = replace(SMALL, keep="4", ways=("own",), limit=None)
    evaluation = run(data, tmp_path / "answers", options)
    assert [one.id for one in evaluation.unreadable] == ["gone"]
    assert evaluation.groups[0].full.n == 4
    data.write_text(json.dumps(gone))
    with pytest.raises(DataError, match=r"none of 1 record .*gone\.png"):
        run(data, tmp_path / "answers", options)


class TestVerb:
    def test_a_bundle(self, nano_bundle: OpenedBundle, scenes: Path, tmp_path: Path) -> None:
        out, plot = tmp_path / "out.json", tmp_path / "out.png"
        caption = {
            "id": "c", "image": str(scenes.parent / "scene-1.png"), "question": "Describe the picture.",
            "answer": "red square A, blue square B", "measure": "words", "scope": "global",
        }  # fmt: skip
        words = tmp_path / "words.jsonl"
        words.write_text(json.dumps(caption))
        done = invoke(
            "evaluate", nano_bundle.root, scenes, words, "--limit", 3, "--keep", "0.25,0.1",
            "--device", "cpu", "--json", out, "--plot", plot,
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
        assert done.stdout.startswith("selectivity: answers kept by the own question less those")
        for text in (
            "selectivity, of words: ", "by what chose the tokens", "a neutral prompt",
            "the asked thing first, the rest by chance", "all tokens but the asked thing's",
            "the asked thing's tokens (3 questions with boxes)", "(Jaccard)", "scope  global",
        ):  # fmt: skip
            assert text in done.stdout
        assert "4/4, " in done.stderr.splitlines()[-1]
        found = json.loads(out.read_text(encoding="utf-8"))
        assert (found["kind"], found["backend"], found["device"]) == (
            "bundle",
            "onnxruntime",
            "cpu",
        )
        assert {one["measure"] for one in found["groups"]} == {"exact", "words"}
        assert plot.read_bytes().startswith(b"\x89PNG")

    def test_refusals(self, nano_bundle: OpenedBundle, tmp_path: Path) -> None:
        of_checkpoint, of_bundle = ("evaluate", NANO, DATA), ("evaluate", nano_bundle.root, DATA)
        junk = tmp_path / "junk.safetensors"
        junk.write_bytes(b"junk")
        weights = NANO / "model.safetensors"
        for rank, word in (
            (junk, "safetensors"), (weights, "not an f_θ"), ("atention", "relevance-clamp")
        ):  # fmt: skip
            refused(invoke(*of_checkpoint, "--rank", rank), str(rank), word)
        for arguments, words in (
            ((*of_checkpoint, "--keep", "2.5"), ("2.5",)),
            ((*of_checkpoint, "--ways", "own,othr"), ("'othr'", "neutral")),
            ((*of_checkpoint, "--threads", "2"), ("--threads", "checkpoint", "leave it out")),
            ((*of_bundle, "--rank", "attention"), ("--rank", "own compressor")),
            ((*of_bundle, "--dtype", "bf16"), ("--dtype", "bundle")),
            ((*of_bundle, DATA), ("twice",)),
            ((*of_bundle[:2], tmp_path / "none.jsonl"), ("no such file",)),
            (("evaluate", tmp_path, DATA), ("neither a bundle", "manifest.json", "config.json")),
            ((*of_bundle, "--json", tmp_path / "a" / "b.json"), ("folder does not exist",)),
            ((*of_bundle, "--json", junk), ("--force",)),
            ((*of_bundle, "--limit", 1, "--answers", tmp_path), ("--answers",)),
            ((*of_bundle, "--limit", 1, "--answers", junk / "x"), ("--answers",)),
        ):  # fmt: skip
            refused(invoke(*arguments), *words)
        assert junk.read_bytes() == b"junk"
