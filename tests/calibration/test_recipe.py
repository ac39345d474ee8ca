"""From questions to a measured f_θ in one command: each step once, whatever stops it."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from foveate.calibration import auto_keep, recipe
from foveate.calibration.auto_keep import AutoKeepOptions
from foveate.calibration.held_out import read_lines
from foveate.calibration.recipe import RecipeOptions, run_recipe
from foveate.calibration.recipe_figures import describe_figures
from foveate.calibration.relevance import trial
from foveate.calibration.relevance.store import Store
from foveate.calibration.training.options import TrainingOptions
from foveate.errors import BackendError, DataError, OutputExistsError
from foveate.modeling.f_theta import FTheta
from foveate.terminal import plural
from tests.calibration.conftest import DATA
from tests.command import invoke, refused
from tests.conftest import NANO

SHORT = RecipeOptions(
    own_answers=True,
    held_out=0.5,
    keep="0.25",
    target=0.5,
    training=TrainingOptions(epochs=1, seed=3),
    device="cpu",
)


@pytest.fixture(scope="module", autouse=True)
def few() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "QUESTIONS", 2)
        patch.setattr(recipe, "SHOWN", 1)
        patch.setattr(auto_keep, "SHARES", (0.5, 1.0))
        patch.setattr(auto_keep, "RATIOS", (0.25, 1.0))
        # An f_θ of one epoch needs all tokens.
        patch.setattr(recipe, "AutoKeepOptions", partial(AutoKeepOptions, most=1.0))
        yield


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two files: six questions about four pictures, two of them on one line, without answers."""
    folder = tmp_path_factory.mktemp("asked")
    records = [json.loads(line) for line in DATA.open()]
    chosen = [records[place] for place in (0, 1, 4, 5, 8, 12)]
    for number, some in enumerate((chosen[:3], chosen[3:])):
        lines = []
        for record in some:
            shutil.copy(DATA.parent / record["image"], folder)
            lines.append({name: record[name] for name in ("id", "image", "question")})
        if number == 0:
            shared, *several = {"image": lines[0].pop("image")}, *lines[:2]
            several[1].pop("image")
            lines[:2] = [shared | {"questions": several}]
        (folder / f"{number}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def made(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; tests must not write in it."""
    out = tmp_path_factory.mktemp("made") / "out"
    run_recipe(str(NANO), questions, out, SHORT)
    return out


def test_pictures_and_questions_are_enough(questions: Path, made: Path) -> None:
    figures = json.loads((made / "figures.json").read_bytes())
    parts = {name: read_lines(made / f"{name}.jsonl", False) for name in ("training", "held-out")}
    seen = [{line.record.pictures[0].resolve() for line in lines} for lines in parts.values()]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == {path.resolve() for path in questions.glob("*.png")}
    assert sum(map(len, parts.values())) == 6
    store = Store.open(made / "maps")
    assert store.ids == {line.record.id for line in parts["training"]}
    assert len(store) == len(store.ids) and store.manifest.own_answers
    labelled = {record["id"]: record["answer"] for record in map(json.loads, DATA.open())}
    for line in parts["held-out"]:
        assert line.record.answers == (labelled[line.record.id],)
    (held,) = figures["held_out"]
    assert (held["full"]["value"], held["full"]["n"]) == (100, len(parts["held-out"]))
    names = ["f_theta.safetensors", "relevance-clamp", "attention"]
    names[1] = {"grad": "relevance", "mean": "relevance-mean"}.get(figures["mode"], names[1])
    ways = [(row["way"], row["ranking"]) for row in held["rows"]]
    assert [name for way, name in ways if way == "own"] == names
    assert {("random", ""), ("smaller", "")} < set(ways)
    selective = [one["ranking"] for one in held["differences"] if one["against"] == "other"]
    assert selective == [name for way, name in ways if way == "other"]
    assert bool(selective) == (len(parts["held-out"]) > len(seen[1]))
    facts = FTheta.load(made / "f_theta.safetensors")[1]
    assert float(facts["auto.share"]) == figures["auto_keep"]["share"]
    assert (made / "relevance.png").read_bytes()[:4] == b"\x89PNG"
    told = describe_figures(figures)
    assert (
        f"100.0 % of answers are right ({plural(held['full']['n'], 'question')}); of these" in told
    )
    assert "the asked question, by f_theta.safetensors" in told and "selectivity" in told
    assert not (made / "answers.jsonl").exists()


@pytest.mark.parametrize("step", ["train_once", "evaluate"])
def test_a_run_goes_on_where_it_was_stopped(
    questions: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """What later steps made is taken away, as if a run had stopped before; earlier steps do nothing."""
    later = ["maps", "f_theta.safetensors", "evaluation.json", "relevance.png"]
    place = ["collect", "train_once", "evaluate"].index(step)
    out = Path(shutil.copytree(made, tmp_path / "out"))
    for name in later[place:]:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if place < 2:
        (out / "auto-keep.json").unlink()
        (out / "f_theta.png").unlink()
        shutil.rmtree(out / "f_theta.tensorboard")
    (out / "figures.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(recipe, step, lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_recipe(str(NANO), questions, out, SHORT)
    monkeypatch.setattr(recipe, "own_answers", lambda *_: 1 / 0)
    run_recipe(str(NANO), questions, out, SHORT)
    again, before = (json.loads((one / "figures.json").read_bytes()) for one in (out, made))
    for figures in (again, before):
        figures["f_theta"] = {
            name: value
            for name, value in figures["f_theta"].items()
            if name not in ("path", "sha256", "figure.seconds")
        }
        figures["picture"] = bool(figures["picture"])
    assert again == before


def test_a_target_out_of_reach_is_told(
    questions: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("with 50% of the visual tokens too few stay")

    out = Path(shutil.copytree(made, tmp_path / "out"))
    (out / "auto-keep.json").unlink()
    monkeypatch.setattr(recipe, "calibrate_auto_keep", fail)
    figures = run_recipe(str(NANO), questions, out, SHORT)
    assert "keep='auto': with 50% of the visual tokens" in describe_figures(figures)


def test_other_settings_begin_afresh_only_with_force(
    questions: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    (out / "notes.txt").write_text("mine")
    for changes in (
        {"keep": "0.5"},
        {"training": TrainingOptions(epochs=2, seed=3)},
        {"own_answers": False},
    ):
        with pytest.raises((OutputExistsError, DataError)):
            run_recipe(str(NANO), questions, out, replace(SHORT, **changes))
    with pytest.raises(OutputExistsError, match="another questions"):
        run_recipe(str(NANO), questions / "0.jsonl", out, SHORT)
    assert (out / "maps").exists()
    monkeypatch.setattr(recipe, "part_questions", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_recipe(str(NANO), questions, out, replace(SHORT, keep="0.5", force=True))
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "settings.json"]


def test_refusals(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["calibrate", "run", NANO]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused(invoke(*arguments, questions, tmp_path / "mine", "--own-answers"), "no run of this")
    refused(
        invoke(*arguments, questions, tmp_path / "out"), "line 1: 'questions' item 1: no answer"
    )
    refused(invoke(*arguments, tmp_path / "mine", tmp_path / "out"), "no .jsonl file")
    assert not (tmp_path / "out").exists()
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a", "b"):
        (twice / f"{name}.jsonl").write_bytes(DATA.read_bytes())
    with pytest.raises(
        DataError, match=r"b\.jsonl: the id 'scene-77-00000-0' is also in .*a\.jsonl"
    ):
        run_recipe(str(NANO), twice, tmp_path / "out", SHORT)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BackendError, match="one process"):
        run_recipe(str(NANO), questions, tmp_path / "out", SHORT)
