"""Evaluation on the nano checkpoint: what is kept decides the answers, and every record counts once."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.calibration.dataset import Record, read_records
from foveate.calibration.evaluation.evaluate import (
    EvaluateOptions,
    capped_count,
    evaluate,
    judge,
    parse_keeps,
)
from foveate.calibration.evaluation.rankings import (
    RANKINGS,
    Seen,
    find_rankings,
    predicted,
    split,
    top,
)
from foveate.calibration.evaluation.result import (
    Evaluation,
    Judged,
    Trial,
    evaluation_facts,
    group,
    wilson,
)
from foveate.calibration.evaluation.table import describe_evaluation
from foveate.calibration.torch_model import TorchModel
from foveate.errors import CheckpointError, DataError, KeepError
from foveate.modeling.f_theta import FTheta
from tests.command import ONE_THREAD, invoke, refused
from tests.conftest import NANO

DATA = NANO / "samples" / "data.jsonl"
SCENE = NANO / "samples" / "scene-77-00004.png"
COUNT = 6
SMALL = EvaluateOptions(
    rank=("attention,random,downsample",), keep="0.5,0.1", device="cpu", limit=COUNT
)
NAMES = [
    "relevance", "relevance-clamp", "relevance-mean", "attention", "random", "downsample"
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> TorchModel:
    return TorchModel.load(NANO)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return read_records(DATA)


@pytest.fixture(scope="module")
def f_theta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("f_theta") / "f_theta.safetensors"
    torch.manual_seed(0)
    FTheta().save(path, {"trained_on": "nothing"})
    return path


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


class TestAnswers:
    def test_they_are_the_subject_s(self, model: TorchModel, whole: dict[str, Any]) -> None:
        right = 0
        for line, judged in zip(DATA.open(), whole["answers"], strict=False):
            record = json.loads(line)
            question = model.prepare(
                record["question"], [Image.open(DATA.parent / record["image"])]
            )
            said = model.text(model.answer(question))
            right += said == record["answer"]
            assert (judged["id"], judged["answer"]) == (record["id"], said)
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

    def test_relevance_is_of_the_mode_that_its_name_says(
        self, model: TorchModel, records: list[Record]
    ) -> None:
        question = model.prepare(records[0].question, [Image.open(records[0].pictures[0])])
        said = model.answer(question)
        maps = {mode: model.relevance(question, said, mode) for mode in ("grad", "grad-clamp", "mean")}  # type: ignore[arg-type] # fmt: skip
        seen = Seen(model, "1", question, said)
        for name, mode in (
            ("relevance", "grad"), ("relevance-clamp", "grad-clamp"), ("relevance-mean", "mean")
        ):  # fmt: skip
            (ranking,) = find_rankings([name])
            assert ranking.scores is not None
            torch.testing.assert_close(ranking.scores(seen), maps[mode])

    def test_all_tokens_give_the_full_answer(
        self, model: TorchModel, records: list[Record], f_theta: Path
    ) -> None:
        rankings = find_rankings([*RANKINGS, str(f_theta)])
        for record in (records[0], records[-1]):
            judged = judge(model, record, rankings, [1.0, 10_000], SMALL)
            assert len(judged.trials) == 2 * len(rankings)
            assert {trial.answer for trial in judged.trials} == {judged.answer}
            assert {trial.used for trial in judged.trials} == {1.0}

    def test_f_theta_ranks(self, model: TorchModel, records: list[Record], f_theta: Path) -> None:
        question = model.prepare(records[0].question, [Image.open(records[0].pictures[0])])
        logits = predicted(FTheta.load(f_theta)[0], model.attention(question)).numpy()
        kept = top(logits, 20)
        judged = judge(model, records[0], find_rankings([str(f_theta)]), [20], SMALL)
        assert judged.trials[0].answer == model.text(model.answer(question, kept))
        assert judged.trials[0].ranking == str(f_theta)

    def test_the_same_tokens_are_asked_once(
        self, model: TorchModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        answer = TorchModel.answer

        def count(*arguments: Any, **options: Any) -> list[int]:
            asked.append(1)
            return answer(*arguments, **options)

        monkeypatch.setattr(TorchModel, "answer", count)
        rankings = find_rankings(["attention,random"])
        judge(model, records[0], rankings, [131, 131, 1.0], SMALL)
        assert len(asked) == 3

    def test_without_an_answer_relevance_ranks_nothing(
        self, model: TorchModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TorchModel, "answer", lambda *_, **__: [])
        judged = judge(model, records[0], find_rankings(["relevance,attention"]), [0.5], SMALL)
        assert not judged.right
        assert [trial.answer for trial in judged.trials] == [None, ""]
        assert not any(trial.right for trial in judged.trials)
        assert [row.unranked for row in group([judged])[0].rows] == [1, 0]


class TestRandom:
    def test_only_the_id_decides(self, model: TorchModel, records: list[Record]) -> None:
        question = model.prepare(records[0].question, [Image.open(records[0].pictures[0])])
        one, again, other = (Seen(model, id, question, []).chance() for id in "aab")
        assert torch.equal(one, again)
        assert not torch.equal(one, other)

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
    @pytest.mark.parametrize("name", ["scene-77-00004.png", "easy-vqa-0113.png"])
    def test_no_more_tokens_than_asked(self, model: TorchModel, name: str) -> None:
        picture = Image.open(NANO / "samples" / name)
        whole = model.prepare("What?", [picture])
        (_, rows, columns) = whole.vision.grids[0]
        used = []
        for most in (1, 2, 5, 11, 32, whole.vision.tokens - 1):
            smaller = model.prepare_shrunk("What?", [picture], [most])
            used.append(smaller.vision.tokens)
            assert most / 3 <= used[-1] <= most
            (_, some_rows, some_columns) = smaller.vision.grids[0]
            assert some_rows <= rows
            assert some_columns <= columns
        assert used == sorted(used)
        same = model.prepare_shrunk("What?", [picture], [whole.vision.tokens])
        assert torch.equal(same.embeds, whole.embeds)

    @pytest.mark.parametrize("size", [(30, 3000), (4000, 40), (7, 900), (1, 1), (3000, 2900)])
    def test_odd_shapes(self, model: TorchModel, size: tuple[int, int]) -> None:
        picture = Image.new("RGBA", size, (200, 10, 10, 90))
        for most in (1, 3, 20):
            assert 1 <= model.prepare_shrunk("What?", [picture], [most]).vision.tokens <= most

    def test_several_pictures_share(self, model: TorchModel, tmp_path: Path) -> None:
        paths = (SCENE, NANO / "samples" / "chart-77-00016.png")
        record = Record("1", paths, "What letter is in the red square?", ("E",))
        judged = judge(model, record, find_rankings(["downsample"]), [0.5, 2, 1], SMALL)
        halved, two, one = judged.trials
        assert 0.3 < halved.used <= 0.5
        assert two.used == 2 / judged.tokens
        assert one.answer is None

    def test_shares(self) -> None:
        assert split([64, 64], 32) == [16, 16]
        assert split([100, 1, 1], 3) == [1, 1, 1]
        assert split([100, 1, 1], 50) == [48, 1, 1]
        assert split([100, 50], 150) == [100, 50]
        assert split([1, 1], 1) == [1, 1]
        assert sum(split([7, 90, 13, 55], 61)) == 61

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


class TestCounts:
    def test_wilson(self) -> None:
        """Figures of Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
        for right, n, low, high in (
            (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718), (29, 29, 0.8830, 1.0),
        ):  # fmt: skip
            assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)

    def test_ties_go_to_the_lower_index(self) -> None:
        scores = np.array([1, 3, 1, 3, 1], dtype=np.float32)
        assert [top(scores, count).tolist() for count in (1, 3, 4)] == [
            [1],
            [0, 1, 3],
            [0, 1, 2, 3],
        ]

    def test_groups(self) -> None:
        def one(name: str, data: str, right: bool, later: bool, **tags: str) -> Judged:
            trials = (Trial("random", 0.5, "E", later, 0.5),)
            return Judged(data, name, tags, 8, "E", right, trials)

        judged = [
            one("1", "a", True, True, task="letter", scope="local"),
            one("2", "a", True, False, task="count"),
            one("3", "b", False, True, task="count"),
            Judged("b", "4", unreadable="gone"),
        ]
        groups = group(judged)
        assert [(one.kind, one.name, one.full.n, one.full.right) for one in groups] == [
            ("all", "", 3, 2), ("data", "a", 2, 2), ("data", "b", 1, 0), ("scope", "local", 1, 1),
            ("task", "letter", 1, 1), ("task", "count", 2, 1),
        ]  # fmt: skip
        assert [one.rows[0].score.right for one in groups] == [2, 1, 1, 1, 1, 1]
        assert [one.of_full(one.rows[0]) for one in groups] == [100, 50, None, 100, 100, 100]
        evaluation = Evaluation(
            {"checkpoint": "nano", "data": [{"path": "a"}]}, judged, groups, 1.0, 1
        )
        said = describe_evaluation(evaluation)
        assert "66.7 (100 %) 20.8–93.9" in said
        assert "unreadable, and counted nowhere: 1 record; the first is 4: gone" in said

    def test_keeps(self) -> None:
        assert parse_keeps("0.5, 64,1,0.5") == [0.5, 64, 1.0]
        assert capped_count(64, 50) == 50
        assert capped_count(0.1, 64) == 6
        for wrong in ("0.5,", "1.5", "0", "half"):
            with pytest.raises(KeepError):
                parse_keeps(wrong)


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
        """About 10 s: two processes load torch."""
        out = tmp_path / "out.json"
        asked = [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
            "--main_process_port", "0", "-m", "foveate", "calibrate", "evaluate",
            str(NANO), str(DATA), "--limit", str(COUNT), "--device", "cpu", "--keep", SMALL.keep,
            "--rank", SMALL.rank[0], "--json", "--out", str(out),
        ]  # fmt: skip
        done = subprocess.run(asked, env=ONE_THREAD, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
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
        asked = ("calibrate", "evaluate", NANO, DATA)
        junk = tmp_path / "junk.safetensors"
        junk.write_bytes(b"junk")
        weights = NANO / "model.safetensors"
        for rank, word in (
            (junk, "safetensors"), (weights, "not an f_θ"), ("atention", "relevance-clamp")
        ):  # fmt: skip
            refused(invoke(*asked, "--rank", rank), str(rank), word)
        refused(invoke(*asked, "--keep", "2.5"), "2.5")
        refused(invoke(*asked, DATA), "twice")
        refused(invoke(*asked[:3], tmp_path / "none.jsonl"), "no such file")
        out = tmp_path / "out.json"
        out.write_text("mine")
        refused(invoke(*asked, "--out", out), "--force")
        refused(invoke(*asked, "--out", tmp_path / "a" / "b.json"), "folder does not exist")
        assert out.read_text() == "mine"

    def test_an_f_theta_of_another_model(
        self, model: TorchModel, records: list[Record], tmp_path: Path
    ) -> None:
        path = tmp_path / "f_theta.safetensors"
        FTheta(3).save(path, {})
        with pytest.raises(CheckpointError, match="3 heads"):
            judge(model, records[0], find_rankings([str(path)]), [0.5], SMALL)

    def test_names(self) -> None:
        assert [one.name for one in find_rankings([])] == NAMES
        assert [one.name for one in find_rankings(["random, attention", "random"])] == [
            "random",
            "attention",
        ]
