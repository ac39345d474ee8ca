"""Evaluation on the nano checkpoint: what is kept decides the answers, and every record counts once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.calibration.evaluation.evaluate import (
    EvaluateOptions,
    capped_count,
    evaluate,
    parse_keeps,
)
from foveate.calibration.evaluation.result import (
    Evaluation,
    evaluation_facts,
)
from foveate.calibration.torch_model import TorchModel
from foveate.errors import DataError, KeepError
from tests.calibration.conftest import DATA, SCENE
from tests.calibration.processes import run_two_processes
from tests.command import invoke, refused
from tests.conftest import NANO

COUNT = 6
SMALL = EvaluateOptions(
    rank=("attention,random,downsample",), keep="0.5,0.1", device="cpu", limit=COUNT
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process writes."""
    out = tmp_path_factory.mktemp("whole") / "out.json"
    evaluation = run(replace(SMALL, out=out))
    facts: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert facts == json.loads(json.dumps(evaluation_facts(evaluation)))
    return facts


def run(options: EvaluateOptions = SMALL, *data: Path) -> Evaluation:
    evaluation = evaluate(str(NANO), data or [DATA], options)
    assert evaluation is not None
    return evaluation


def without_time(facts: dict[str, Any]) -> dict[str, Any]:
    pace = ("seconds", "records_per_second", "processes")
    return {name: value for name, value in facts.items() if name not in pace}


def test_keeps() -> None:
    assert parse_keeps("0.5, 64,1,0.5") == [0.5, 64, 1.0]
    assert capped_count(64, 50) == 50
    assert capped_count(0.1, 64) == 6
    for wrong in ("0.5,", "1.5", "0", "half"):
        with pytest.raises(KeepError):
            parse_keeps(wrong)


class TestAnswers:
    def test_they_are_the_models_own(self, model: TorchModel, whole: dict[str, Any]) -> None:
        right = 0
        for line, judged in zip(DATA.open(), whole["answers"], strict=False):
            record = json.loads(line)
            question = model.prepare(
                record["question"], [Image.open(DATA.parent / record["image"])]
            )
            answer = model.text(model.answer(question))
            right += answer == record["answer"]
            assert (judged["id"], judged["answer"]) == (record["id"], answer)
            assert judged["tags"] == {"task": record["task"], "scope": record["scope"]}
            assert judged["tokens"] == question.visual.tokens
            by_attention = model.attention(question).mean((0, 1)).numpy()
            for trial, keep in zip(judged["trials"][:2], (0.5, 0.1), strict=True):
                count = int(np.floor(question.visual.tokens * keep + 0.5))
                kept = np.sort(np.argsort(-by_attention, kind="stable")[:count])
                assert trial["answer"] == model.text(model.answer(question, kept))
                assert trial["right"] == (trial["answer"] == record["answer"])
                assert trial["used"] == count / question.visual.tokens
        assert whole["groups"][0]["full"]["right"] == right


class TestRandom:
    def test_the_same_in_two_runs_and_any_order(
        self, whole: dict[str, Any], tmp_path: Path
    ) -> None:
        lines = DATA.read_text(encoding="utf-8").splitlines()[:COUNT][::-1]
        records = [json.loads(line) for line in lines]
        for record in records:
            record["image"] = str(DATA.parent / record["image"])
        (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
        options = replace(SMALL, rank=("random",))
        judged = run(options, tmp_path / "data.jsonl").judged
        before = {
            one["id"]: [trial["answer"] for trial in one["trials"] if trial["ranking"] == "random"]
            for one in whole["answers"]
        }
        assert {one.id: [trial.answer for trial in one.trials] for one in judged} == before


class TestDownsample:
    def test_answers_are_others_than_with_all(self, whole: dict[str, Any]) -> None:
        tenth = [
            trial
            for one in whole["answers"]
            for trial in one["trials"]
            if (trial["ranking"], trial["keep"]) == ("downsample", 0.1)
        ]
        assert all(0 < trial["used"] <= 0.105 for trial in tenth)
        full = [one["answer"] for one in whole["answers"]]
        assert [trial["answer"] for trial in tenth] != full


class TestResult:
    def test_schema(self, whole: dict[str, Any]) -> None:
        assert set(whole) == {
            "format", "version", "checkpoint", "checkpoint_sha256", "family", "dtype", "rule",
            "max_new_tokens", "limit", "data", "rankings", "keeps", "tools", "records", "unreadable",
            "seconds", "records_per_second", "processes", "groups", "answers",
        }  # fmt: skip
        assert (whole["format"], whole["version"]) == ("foveate-evaluation", 1)
        assert whole["records"] == len(whole["answers"]) == COUNT
        assert whole["data"][0]["records"] == COUNT
        assert whole["keeps"] == [0.5, 0.1]
        everything = whole["groups"][0]
        assert set(everything) == {"kind", "name", "full", "rows"}
        assert [(row["ranking"], row["keep"]) for row in everything["rows"]] == [
            (name, keep) for name in ("attention", "random", "downsample") for keep in (0.5, 0.1)
        ]
        for row in everything["rows"]:
            assert set(row) == {
                "ranking", "keep", "n", "right", "accuracy", "interval", "of_full", "used", "unranked"
            }  # fmt: skip
            assert row["n"] == COUNT
            assert row["accuracy"] == pytest.approx(100 * row["right"] / COUNT)
            assert row["of_full"] == pytest.approx(100 * row["right"] / everything["full"]["right"])
        sums = dict.fromkeys(("all", "scope", "task"), 0)
        for one in whole["groups"]:
            sums[one["kind"]] += one["full"]["n"]
        assert set(sums.values()) == {COUNT}

    def test_two_processes_give_the_same(self, whole: dict[str, Any], tmp_path: Path) -> None:
        out = tmp_path / "out.json"
        done = run_two_processes(
            "calibrate", "evaluate", NANO, DATA, "--limit", COUNT, "--device", "cpu",
            "--keep", SMALL.keep, "--rank", SMALL.rank[0], "--json", "--out", out,
        )  # fmt: skip
        facts = json.loads(done.stdout)
        assert facts == json.loads(out.read_text(encoding="utf-8"))
        assert facts["processes"] == 2
        assert without_time(facts) == without_time(whole)

    def test_unreadable_records_are_counted(self, tmp_path: Path) -> None:
        first = json.loads(DATA.open().readline())
        right = {**first, "image": str(DATA.parent / first["image"])}
        records = [right, {**right, "id": "gone", "image": "gone.png"}]
        data = tmp_path / "data.jsonl"
        data.write_text("\n".join(map(json.dumps, records)))
        evaluation = run(SMALL, data)
        facts = evaluation_facts(evaluation)
        assert (facts["records"], facts["unreadable"], facts["groups"][0]["full"]["n"]) == (2, 1, 1)
        assert "gone.png" in facts["answers"][1]["unreadable"]
        data.write_text(json.dumps(records[1]))
        with pytest.raises(DataError, match=r"none of 1 record .*gone\.png"):
            run(SMALL, data)


class TestVerb:
    def test_table(self, tmp_path: Path) -> None:
        other = tmp_path / "other.jsonl"
        record = {**json.loads(DATA.open().readline()), "image": str(SCENE)}
        other.write_text(json.dumps(record))
        result = invoke(
            "calibrate", "evaluate", NANO, DATA, other, "--rank", "attention", "--rank", "random",
            "--keep", "0.5,12", "--limit", 2, "--device", "cpu",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert "3 records" in result.stdout
        assert "accuracy in %, kept: 12 tokens" in result.stdout
        assert f"data   {other}"[:20] in result.stdout
        assert "3/3, " in result.stderr.splitlines()[-1]
        rows = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")]
        assert [rows.count(name) for name in ("full", "attention", "random")] == [1, 1, 1]

    def test_refusals(self, tmp_path: Path) -> None:
        arguments = ("calibrate", "evaluate", NANO, DATA)
        junk = tmp_path / "junk.safetensors"
        junk.write_bytes(b"junk")
        weights = NANO / "model.safetensors"
        for rank, word in (
            (junk, "safetensors"), (weights, "not an f_θ"), ("atention", "relevance-clamp")
        ):  # fmt: skip
            refused(invoke(*arguments, "--rank", rank), str(rank), word)
        refused(invoke(*arguments, "--keep", "2.5"), "2.5")
        refused(invoke(*arguments, DATA), "twice")
        refused(invoke(*arguments[:3], tmp_path / "none.jsonl"), "no such file")
        out = tmp_path / "out.json"
        out.write_text("mine")
        refused(invoke(*arguments, "--out", out), "--force")
        refused(invoke(*arguments, "--out", tmp_path / "a" / "b.json"), "folder does not exist")
        assert out.read_text() == "mine"
