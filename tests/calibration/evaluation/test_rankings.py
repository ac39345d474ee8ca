"""Rankings by name: what each scores tokens by."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.checkpoint import LoadedCheckpoint
from foveate.calibration.evaluation.rankings import RANKINGS, find_rankings, ranked
from foveate.calibration.torch_model import TorchModel
from foveate.errors import CheckpointError
from foveate.modeling.f_theta import FTheta
from foveate.modeling.ranker import Ranker
from tests.calibration.conftest import SCENE

ATTENTION = ["attention", "attention:mean", "attention:unusual"]
NAMES = [*ATTENTION, "relevance", "relevance-clamp", "relevance-mean"]


def test_names() -> None:
    assert list(RANKINGS) == NAMES
    assert [one.name for one in find_rankings([])] == ["attention"]
    names = [one.name for one in find_rankings(["relevance, attention", "relevance"])]
    assert names == ["relevance", "attention"]
    for wrong in ("random", "", "atention"):
        with pytest.raises(CheckpointError, match="relevance-clamp"):
            find_rankings([wrong])


def test_each_scores_by_what_its_name_says(
    model: TorchModel, records: list[Record], f_theta: Path
) -> None:
    question = model.prepare(records[0].question, [Image.open(records[0].pictures[0])])
    answer, attention = model.answer(question), model.attention(question)
    ranked_by = {one.name: one for one in find_rankings([*NAMES, str(f_theta)])}
    scene = LoadedCheckpoint(model, ranked_by, 64, 16).open(records[0])
    for name, mode in (
        ("relevance", "grad"), ("relevance-clamp", "grad-clamp"), ("relevance-mean", "mean")
    ):  # fmt: skip
        found = scene.scores(name, records[0].question)
        wanted = model.relevance(question, answer, mode)  # type: ignore[arg-type]
        assert found == pytest.approx(wanted.numpy())
    unusual, mean = ranked(Ranker(words="unusual"), attention)[0], attention.mean((0, 1))
    assert not torch.allclose(unusual, mean)
    for name, scores in zip(ATTENTION, (unusual, mean, unusual), strict=True):
        assert scene.scores(name, records[0].question) == pytest.approx(scores.numpy())
    logits = FTheta.load(f_theta)[0](attention.mean((0, 1))[None, None])[0].detach()
    assert scene.scores(str(f_theta), records[0].question) == pytest.approx(logits.numpy())


def test_without_an_answer_relevance_ranks_nothing(
    model: TorchModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchModel, "answers", lambda *_: [[]])
    ranked_by = {one.name: one for one in find_rankings(["relevance"])}
    scene = LoadedCheckpoint(model, ranked_by, 64, 16).open(records[0])
    assert scene.scores("relevance", "What is it?") is None


def test_an_f_theta_of_another_model(
    model: TorchModel, records: list[Record], tmp_path: Path
) -> None:
    path = tmp_path / "f_theta.safetensors"
    FTheta(3).save(path, {})
    ranked_by = {one.name: one for one in find_rankings([str(path)])}
    with pytest.raises(CheckpointError, match="3 heads"):
        LoadedCheckpoint(model, ranked_by, 64, 16).open(records[0]).scores(str(path), "What?")


def test_heads_apart(model: TorchModel) -> None:
    question = model.prepare("What letter is in the red square?", [Image.open(SCENE)])
    heads = len(model.attention(question))
    scores, relevance = ranked(Ranker(FTheta(heads)), model.attention(question))
    assert scores.shape == relevance.shape == (110,)
    assert torch.is_grad_enabled() and not scores.requires_grad
