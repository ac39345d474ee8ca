"""Collecting relevance maps of the nano checkpoint: once each, whatever stops or shares the work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.calibration.dataset import Record
from foveate.calibration.relevance import trial as trials
from foveate.calibration.relevance.collect import Collected, CollectOptions, collect
from foveate.calibration.relevance.manifest import MANIFEST
from foveate.calibration.relevance.store import Store
from foveate.calibration.torch_model import TorchModel
from foveate.errors import BackendError, CheckpointError, DataError, OutputError, OutputExistsError
from tests.calibration.conftest import DATA
from tests.calibration.processes import run_two_processes
from tests.command import ONE_THREAD, invoke, refused
from tests.conftest import NANO

COUNT = 10
SMALL = CollectOptions(mode="grad", device="cpu", limit=COUNT)
KILLED = """
import sys
from pathlib import Path
from foveate.calibration.relevance.collect import CollectOptions, collect
options = CollectOptions(mode="grad", device="cpu", limit=int(sys.argv[4]), flush_seconds=0)
collect(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), options)
"""

TOLD_EACH = """
import sys
from foveate.calibration import progress
from foveate.cli import main
progress.LINE_SECONDS = 0
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run of one process makes; tests must not write in it."""
    out = tmp_path_factory.mktemp("whole") / "maps"
    collect(str(NANO), DATA, out, SMALL)
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "maps"))


def run(out: Path, options: CollectOptions = SMALL, data: Path = DATA) -> Collected:
    collected = collect(str(NANO), data, out, options)
    assert collected is not None
    return collected


def assert_same(one: Path, other: Path) -> None:
    """Two stores hold the same records and the same samples, to the last bit."""
    first, second = Store.open(one), Store.open(other)
    assert first.ids == second.ids
    assert first.outcomes() == second.outcomes()
    for mine, its in zip(first, second, strict=True):
        for name in mine.__slots__:
            np.testing.assert_array_equal(getattr(mine, name), getattr(its, name))


def wait_for_shards(process: "subprocess.Popen[bytes]", out: Path, count: int) -> None:
    """Wait until a process has written so many shards."""
    until = time.monotonic() + 60
    while len(list(out.glob("part-*.arrow"))) < count:
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < until
        time.sleep(0.01)


class TestMaps:
    def test_they_are_what_the_model_computes(self, model: TorchModel, whole: Path) -> None:
        store = Store.open(whole)
        assert (len(store), store.outcomes()["kept"]) == (COUNT, COUNT)
        records = {record["id"]: record for record in map(json.loads, DATA.open())}
        for sample in (store[0], store[7]):
            record = records[sample.id]
            assert sample.pictures == (record["image"],)
            assert (sample.question, sample.answers) == (record["question"], (record["answer"],))
            question = model.prepare(sample.question, [Image.open(DATA.parent / record["image"])])
            answer = model.answer(question)
            assert (sample.answer, sample.tokens) == (model.text(answer), len(answer))
            assert sample.picture.tolist() == question.visual.picture.tolist()
            np.testing.assert_array_equal(sample.boxes, question.visual.boxes)
            relevance = model.relevance(question, answer).numpy()
            np.testing.assert_allclose(sample.relevance, relevance, rtol=1e-4, atol=1e-7)
            attention = model.attention(question).numpy()
            np.testing.assert_allclose(sample.attention, attention.mean(1), rtol=1e-4, atol=1e-9)
            np.testing.assert_allclose(sample.words, attention.mean(0), rtol=1e-4, atol=1e-9)
            assert model.tokenizer.decode(sample.instruction.tolist()) == sample.question

    def test_the_manifest_says_how(self, whole: Path) -> None:
        made = Store.open(whole).manifest
        assert made.checkpoint == str(NANO)
        assert [getattr(made, name) for name in ("family", "mode", "dtype", "rule", "keep_wrong")] == [
            "qwen2_vl", "grad", "fp32", "exact", False
        ]  # fmt: skip
        assert made.counts == {"kept": COUNT, "wrong": 0, "unreadable": 0}
        assert made.tools["torch"] == torch.__version__


class TestOutcomes:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        """Six records that each come out in another way."""
        first = json.loads(DATA.open().readline())
        picture = DATA.parent / first["image"]
        cut = tmp_path / "cut.png"
        cut.write_bytes(picture.read_bytes()[:200])
        right = {**first, "id": "right", "image": str(picture)}
        records = [
            right,
            {**right, "id": "one of several", "answers": ["nothing", first["answer"].upper()]},
            {**right, "id": "wrong", "answer": "something else"},
            {**right, "id": "missing", "image": "gone.png"},
            {**right, "id": "cut", "image": "cut.png"},
            {**right, "id": "refused", "question": "<|im_end|>"},
        ]
        del records[1]["answer"]
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        return path

    @pytest.mark.parametrize("keep_wrong", [False, True])
    def test_each_is_counted(self, data: Path, tmp_path: Path, keep_wrong: bool) -> None:
        options = replace(SMALL, keep_wrong=keep_wrong, mode="mean")
        collected = run(tmp_path / "maps", options, data)
        kept = ["one of several", "right", *["wrong"] * keep_wrong]
        counts = {"kept": len(kept), "wrong": 3 - len(kept), "unreadable": 3}
        assert collected.outcomes == counts
        store = Store.open(tmp_path / "maps")
        assert [sample.id for sample in store] == kept
        assert len(store.ids) == 6
        assert run(tmp_path / "maps", options, data).new == 0

    def test_reasons_are_in_the_shard(self, data: Path, tmp_path: Path) -> None:
        import pyarrow as pa

        run(tmp_path / "maps", replace(SMALL, mode="mean"), data)
        (shard,) = (tmp_path / "maps").glob("part-*.arrow")
        table = pa.ipc.open_file(str(shard)).read_all().select(["id", "outcome", "reason"])
        rows = {row["id"]: (row["outcome"], row["reason"]) for row in table.to_pylist()}
        assert rows["right"] == ("kept", "")
        assert rows["wrong"] == ("wrong", "wrong answer")
        for name, word in (("missing", "gone.png"), ("cut", "cut.png"), ("refused", "im_end")):
            assert rows[name][0] == "unreadable"
            assert word in rows[name][1]

    def test_an_empty_answer_is_wrong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TorchModel, "answer", lambda *_, **__: [])
        collected = run(tmp_path / "maps", replace(SMALL, keep_wrong=True, limit=2))
        assert collected.outcomes == {"kept": 0, "wrong": 2, "unreadable": 0}

    def test_relevance_that_is_not_finite_is_not_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TorchModel, "relevance", lambda *_, **__: torch.tensor([torch.nan]))
        collected = run(tmp_path / "maps", replace(SMALL, limit=2))
        assert collected.outcomes == {"kept": 0, "wrong": 0, "unreadable": 2}

    def test_other_errors_are_raised(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(TorchModel, "answer", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(tmp_path / "maps", replace(SMALL, limit=2))


class TestResume:
    def test_after_a_kill(self, whole: Path, tmp_path: Path) -> None:
        out = tmp_path / "maps"
        arguments = [sys.executable, "-c", KILLED, str(NANO), str(DATA), str(out), str(COUNT)]
        with subprocess.Popen(arguments, env=ONE_THREAD) as process:
            wait_for_shards(process, out, 3)
            process.kill()
        (out / ".part-0-9.arrow.partial-0123abcd").write_bytes(b"half a shard")
        left = Store.open(out)
        assert 3 <= len(left.ids) < COUNT
        assert left.manifest.counts is None
        assert run(out).new == COUNT - len(left.ids)
        assert_same(out, whole)
        assert all(name.startswith(("part-", MANIFEST)) for name in os.listdir(out))

    def test_after_an_interrupt(self, whole: Path, tmp_path: Path) -> None:
        out = tmp_path / "maps"
        verb = ("calibrate", "relevance", NANO, DATA, out, "--device", "cpu")
        arguments = [sys.executable, "-c", TOLD_EACH, *map(str, verb)]
        with subprocess.Popen(arguments, env=ONE_THREAD, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            seen = b""
            while b"\n1/136, " not in seen:
                more = os.read(process.stderr.fileno(), 4096)
                assert more, seen
                seen += more
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=60)[1].decode()
        assert process.returncode == 130
        assert "the same command goes on from there" in told
        assert "foveate: error: interrupted" in told.splitlines()[-1]
        assert "Traceback" not in told
        done = Store.open(out)
        assert 0 < len(done) < 136
        assert f"{out} holds {len(done)} record" in told

    def test_nothing_left_to_do(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TorchModel, "load", None)
        before = Store.open(copy).manifest
        assert run(copy).new == 0
        assert Store.open(copy).manifest == before

    def test_a_shard_that_was_lost_is_made_again(self, copy: Path, whole: Path) -> None:
        (copy / "part-0-0.arrow").unlink()
        assert run(copy).new == COUNT
        assert_same(copy, whole)

    def test_a_damaged_shard_is_no_basis(self, copy: Path) -> None:
        data = (copy / "part-0-0.arrow").read_bytes()
        (copy / "part-0-0.arrow").write_bytes(data[:-100])
        with pytest.raises(DataError, match=r"part-0-0\.arrow"):
            run(copy)
        with pytest.raises(DataError, match=r"part-0-0\.arrow"):
            run(copy)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("mode", "mean"), ("dtype", "bf16"), ("rule", "contains"), ("keep_wrong", True),
            ("max_new_tokens", 3), ("own_answers", True),
        ],
    )  # fmt: skip
    def test_other_settings_do_not_mix(self, copy: Path, name: str, value: object) -> None:
        with pytest.raises(OutputExistsError, match=rf"another {name} .*{value!r}.*--force"):
            run(copy, replace(SMALL, **{name: value}))
        assert len(Store.open(copy)) == COUNT

    def test_another_data_set_or_checkpoint_does_not_mix(
        self, copy: Path, tmp_path: Path, tiny_checkpoint: Path
    ) -> None:
        (tmp_path / "other.jsonl").write_bytes(DATA.read_bytes() + b"\n")
        with pytest.raises(OutputExistsError, match="another data_sha256"):
            run(copy, data=tmp_path / "other.jsonl")
        with pytest.raises(OutputExistsError, match="another checkpoint_sha256"):
            collect(str(tiny_checkpoint), DATA, copy, SMALL)

    def test_force_starts_afresh(self, copy: Path) -> None:
        (copy / "part-4-2.arrow").write_bytes(b"of another run")
        (copy / "notes.txt").write_text("mine")
        assert run(copy, replace(SMALL, mode="mean", limit=2, force=True)).new == 2
        assert sorted(os.listdir(copy)) == [MANIFEST, "notes.txt", "part-0-0.arrow"]
        assert Store.open(copy).manifest.mode == "mean"

    def test_what_is_not_ours_stays(self, tmp_path: Path) -> None:
        for name, text in (("mine.txt", "mine"), (MANIFEST, '{"format": "other"}')):
            folder = tmp_path / name.split(".")[0]
            folder.mkdir()
            (folder / name).write_text(text)
            for force in (False, True):
                with pytest.raises((OutputExistsError, DataError)):
                    run(folder, replace(SMALL, force=force))
            assert (folder / name).read_text() == text
            assert os.listdir(folder) == [name]
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OutputExistsError, match="not a folder"):
            run(tmp_path / "file", replace(SMALL, force=True))
        with pytest.raises(OutputError, match="folder does not exist"):
            run(tmp_path / "a" / "b")

    def test_two_runs_do_not_share_a_folder(self, copy: Path) -> None:
        fcntl = pytest.importorskip("fcntl")
        descriptor = os.open(copy, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(OutputExistsError, match="another run"):
            run(copy)
        os.close(descriptor)
        assert run(copy).new == 0


class TestMode:
    AUTO = replace(SMALL, mode="auto", limit=4)

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trials, "QUESTIONS", 3)

    def test_the_best_is_taken_with_its_figures_and_kept(self, tmp_path: Path) -> None:
        out = tmp_path / "maps"
        made = run(out, replace(self.AUTO, limit=2)).made
        assert made.trial is not None
        assert made.trial.questions == 2
        totals = {mode: sum(counts) for mode, counts in made.trial.same.items()}
        assert totals[made.mode] == max(totals.values()) > totals["grad"]
        again = run(out, self.AUTO)
        assert (again.new, again.made.mode, again.made.trial) == (2, made.mode, made.trial)
        assert run(out, replace(self.AUTO, mode=made.mode)).made.trial == made.trial  # type: ignore[arg-type]
        with pytest.raises(OutputExistsError, match="another mode"):
            run(out, replace(self.AUTO, mode="grad"))

    def test_each_mode_is_judged_by_the_answers_it_keeps(
        self, model: TorchModel, records: list[Record]
    ) -> None:
        trial = trials.try_modes(model, records[:1], self.AUTO.judging)
        question = model.prepare(records[0].question, model.open(records[0]))
        answer = model.answer(question)
        for mode, counts in trial.same.items():
            scores = model.relevance(question, answer, mode).numpy()  # type: ignore[arg-type]
            for keep, count in zip(trials.KEEPS, counts, strict=True):
                kept = np.sort(np.argsort(-scores, kind="stable")[: round(keep * len(scores))])
                assert (model.answer(question, kept) == answer) == count, (mode, keep)

    def test_a_run_killed_before_the_choice_chooses(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(trials, "try_modes", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(tmp_path / "maps", self.AUTO)
        assert run(tmp_path / "maps", self.AUTO).made.mode != "auto"

    def test_no_answer_to_measure_on(self, tmp_path: Path) -> None:
        first = json.loads(DATA.open().readline())
        first |= {"image": str(DATA.parent / first["image"]), "answer": "something else"}
        (tmp_path / "data.jsonl").write_text(json.dumps(first))
        made = run(tmp_path / "maps", self.AUTO, tmp_path / "data.jsonl").made
        assert made.trial is not None
        assert (made.mode, made.trial.questions) == ("grad", 0)
        assert "no answer to measure" in trials.describe_trial(made)

    def test_an_explicit_store_is_not_gone_on_with(self, copy: Path) -> None:
        with pytest.raises(OutputExistsError, match=r"another mode .*'grad', now 'auto'"):
            run(copy, self.AUTO)


class TestOwnAnswers:
    OWN = replace(SMALL, own_answers=True, limit=3)

    def test_pictures_and_questions_are_enough(self, tmp_path: Path, whole: Path) -> None:
        lines = []
        for line in DATA.read_text().splitlines()[:3]:
            record = json.loads(line)
            del record["answer"]
            lines.append(json.dumps({**record, "image": str(DATA.parent / record["image"])}))
        (tmp_path / "asked.jsonl").write_text("\n".join(lines))
        collected = run(tmp_path / "maps", self.OWN, tmp_path / "asked.jsonl")
        assert collected.outcomes == {"kept": 3, "wrong": 0, "unreadable": 0}
        store = Store.open(tmp_path / "maps")
        labelled = {sample.id: sample for sample in Store.open(whole)}
        for sample in store:
            assert sample.answers == ()
            assert sample.answer == labelled[sample.id].answer
            np.testing.assert_array_equal(sample.relevance, labelled[sample.id].relevance)
        assert store.manifest.own_answers

    def test_labels_that_are_there_do_not_judge(self, tmp_path: Path) -> None:
        first = json.loads(DATA.open().readline())
        first |= {"image": str(DATA.parent / first["image"]), "answer": "something else"}
        (tmp_path / "data.jsonl").write_text(json.dumps(first))
        assert run(tmp_path / "own", self.OWN, tmp_path / "data.jsonl").outcomes["kept"] == 1
        assert run(tmp_path / "maps", SMALL, tmp_path / "data.jsonl").outcomes["wrong"] == 1

    def test_captions_are_right_with_half_of_their_words(self, tmp_path: Path) -> None:
        first = json.loads(DATA.open().readline())
        assert first["answer"] == "H and K"
        shared = {"id": "1", "image": str(DATA.parent / first["image"]), "measure": "words"}
        several = [
            {"question": first["question"], "answer": text} for text in ("H and M", "M and S", "C")
        ]
        (tmp_path / "data.jsonl").write_text(json.dumps({**shared, "questions": several}))
        outcomes = run(tmp_path / "maps", SMALL, tmp_path / "data.jsonl").outcomes
        assert outcomes == {"kept": 1, "wrong": 2, "unreadable": 0}

    def test_what_judges_is_refused(self, tmp_path: Path) -> None:
        for name, value in (("keep_wrong", True), ("rule", "contains")):
            with pytest.raises(DataError, match="none is wrong; leave out --keep-wrong and --rule"):
                run(tmp_path / "maps", replace(self.OWN, **{name: value}))


class TestReport:
    def test_own_and_other_by_mode_and_form(
        self, model: TorchModel, tmp_path: Path, records: list[Record]
    ) -> None:
        """Three questions about one picture, counted here one by one for one ratio."""
        out, options = tmp_path / "maps", replace(SMALL, limit=3, report=True)
        found = run(out, options).selectivity
        assert found is not None
        assert (found.questions, found.pictures) == (3, 1)
        assert len(found.rows) == 9
        asked = [model.prepare(one.question, model.open(one)) for one in records[:3]]
        said = [model.answer(one) for one in asked]
        maps = [
            model.relevance(*one, "grad-clamp").numpy() for one in zip(asked, said, strict=True)
        ]
        kept = [np.sort(np.argsort(-one, kind="stable")[: round(0.1 * len(one))]) for one in maps]
        row = next(one for one in found.rows if (one.mode, one.form) == ("grad-clamp", "R_v"))
        own = [model.answer(asked[n], kept[n]) == said[n] for n in range(3)]
        other = [model.answer(asked[n], kept[(n + 1) % 3]) == said[n] for n in range(3)]
        assert (row.own[1], row.other[1]) == (sum(own), sum(other))
        shared = [len({*kept[n]} & {*kept[(n + 1) % 3]}) / len(kept[n]) for n in range(3)]
        assert row.overlap[1] == pytest.approx(np.mean(shared))
        for one in found.rows:
            label = next(row for row in found.rows if (row.mode, row.form) == (one.mode, "label"))
            if one.form == "R_v" and one.mode != "grad":
                # The label's upper half is relevance's own.
                assert (label.own, label.other) == (one.own, one.other)

    def test_it_is_kept_and_not_measured_twice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = replace(SMALL, limit=2, report=True)
        first = run(tmp_path / "maps", options)
        monkeypatch.setattr(TorchModel, "load", lambda *_: 1 / 0)
        again = run(tmp_path / "maps", options)
        assert again.selectivity == first.selectivity is not None
        assert run(tmp_path / "maps", replace(options, report=False)).selectivity is None

    def test_it_needs_a_picture_with_two_questions(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no picture has two; .*leave out --report"):
            run(tmp_path / "maps", replace(SMALL, limit=1, report=True))
        assert not (tmp_path / "maps").exists()


class TestProcesses:
    def test_two_share_the_work_and_one_goes_on(self, whole: Path, tmp_path: Path) -> None:
        out = tmp_path / "maps"
        done = run_two_processes(
            "calibrate",
            "relevance",
            NANO,
            DATA,
            out,
            "--limit",
            COUNT - 1,
            "--mode",
            "grad",
            "--device",
            "cpu",
            "--json",
        )
        facts = json.loads(done.stdout)
        assert (facts["records"], facts["new"], facts["processes"]) == (COUNT - 1, COUNT - 1, 2)
        assert done.stderr.count("loading ") == 1
        shards = list(Store.open(out).manifest.shards or {})
        assert shards == ["part-0-0.arrow", "part-1-0.arrow"]
        assert run(out).new == 1
        assert_same(out, whole)

    def test_processes_that_do_not_find_each_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "3")
        with pytest.raises(BackendError, match="accelerate launch"):
            run(tmp_path / "maps")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
    def test_a_device_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match="--device cpu"):
            run(tmp_path / "maps", replace(SMALL, device="cuda"))


class TestVerb:
    def test_text_json_and_progress(self, tmp_path: Path) -> None:
        arguments = ["calibrate", "relevance", NANO, DATA, tmp_path / "maps", "--mode", "mean"]
        result = invoke(*arguments, "--limit", 2)
        assert result.exit_code == 0, result.stderr
        assert f"{tmp_path / 'maps'}: 2 records, 2 of them new" in result.stdout
        assert "2  kept" in result.stdout
        assert "2/2, " in result.stderr.splitlines()[-1]
        assert "2 kept, 0 wrong, 0 unreadable" in result.stderr.splitlines()[-1]
        facts = json.loads(invoke(*arguments, "--limit", 3, "--json").stdout)
        assert facts.pop("seconds") > 0
        assert facts.pop("samples_per_second") > 0
        assert facts == {"out": str(tmp_path / "maps"), "records": 3, "kept": 3, "wrong": 0,
                         "unreadable": 0, "new": 1, "processes": 1, "mode": "mean",
                         "own_answers": False, "trial": None, "selectivity": None}  # fmt: skip

    def test_refusals(self, tmp_path: Path) -> None:
        arguments = ["calibrate", "relevance"]
        out = tmp_path / "maps"
        (tmp_path / "data.jsonl").write_text('{"id": "1"}')
        refused(
            invoke(*arguments, NANO, tmp_path / "none.jsonl", out), "none.jsonl", "no such file"
        )
        refused(invoke(*arguments, NANO, tmp_path / "data.jsonl", out), "data.jsonl, line 1")
        refused(invoke(*arguments, tmp_path / "none", DATA, out), "no such folder")
        assert not out.exists()
        with pytest.raises(CheckpointError):
            collect(str(tmp_path), DATA, out, SMALL)

    @pytest.mark.parametrize(
        ("name", "module"), [("torch", "processes"), ("pyarrow", "relevance.store")]
    )
    def test_what_is_missing_is_named(
        self, monkeypatch: pytest.MonkeyPatch, name: str, module: str
    ) -> None:
        from foveate.calibration import relevance

        monkeypatch.setitem(sys.modules, name, None)
        for imported in (module, "relevance.collect"):
            monkeypatch.delitem(sys.modules, f"foveate.calibration.{imported}")
        monkeypatch.delattr(relevance, "collect")
        done = invoke("calibrate", "relevance", "c", "d", "o")
        assert done.exit_code == 2
        assert name in done.stderr
        assert "pip install 'foveate[calibrate]'" in done.stderr
