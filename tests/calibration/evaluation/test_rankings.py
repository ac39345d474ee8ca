"""Rankings by name: what each scores tokens by."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.answer_cache import AnswerCache
from foveate.calibration.evaluation.rankings import AnsweredQuestion, find_rankings, predicted
from foveate.calibration.torch_model import TorchModel
from foveate.errors import CheckpointError
from foveate.modeling.f_theta import FTheta
from tests.calibration.conftest import SCENE

NAMES = [
    "relevance", "relevance-clamp", "relevance-mean", "attention", "random", "downsample"
]  # fmt: skip


def test_names() -> None:
    assert [one.name for one in find_rankings([])] == NAMES
    assert [one.name for one in find_rankings(["random, attention", "random"])] == [
        "random",
        "attention",
    ]


def test_relevance_is_of_the_mode_that_its_name_says(
    model: TorchModel, records: list[Record]
) -> None:
    question = model.prepare(records[0].question, [Image.open(records[0].pictures[0])])
    answer = model.answer(question)
    maps = {mode: model.relevance(question, answer, mode) for mode in ("grad", "grad-clamp", "mean")}  # type: ignore[arg-type] # fmt: skip
    answered = AnsweredQuestion(model, "1", question, answer)
    for name, mode in (
        ("relevance", "grad"), ("relevance-clamp", "grad-clamp"), ("relevance-mean", "mean")
    ):  # fmt: skip
        (ranking,) = find_rankings([name])
        assert ranking.scores is not None
        torch.testing.assert_close(ranking.scores(answered), maps[mode])


def test_only_the_id_decides(model: TorchModel, records: list[Record]) -> None:
    question = model.prepare(records[0].question, [Image.open(records[0].pictures[0])])
    one, again, other = (AnsweredQuestion(model, id, question, []).random() for id in "aab")
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_an_f_theta_of_another_model(
    model: TorchModel, records: list[Record], tmp_path: Path
) -> None:
    path = tmp_path / "f_theta.safetensors"
    FTheta(3).save(path, {})
    with pytest.raises(CheckpointError, match="3 heads"):
        AnswerCache.of(model, records[0], 64).answer(find_rankings([str(path)])[0], 9)


def test_heads_apart(model: TorchModel) -> None:
    question = model.prepare("What letter is in the red square?", [Image.open(SCENE)])
    heads = len(model.attention(question))
    assert predicted(FTheta(heads), model.attention(question)).shape == (110,)
