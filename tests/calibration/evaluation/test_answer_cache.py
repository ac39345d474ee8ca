"""Answers with some of the visual tokens: each set of tokens once, and all of them the full answer."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.evaluate import EvaluateOptions, judge
from foveate.calibration.evaluation.rankings import RANKINGS, find_rankings, predicted
from foveate.calibration.evaluation.result import group
from foveate.calibration.ranking import top
from foveate.calibration.torch_model import TorchModel
from foveate.modeling.f_theta import FTheta
from tests.calibration.conftest import SCENE
from tests.conftest import NANO

OPTIONS = EvaluateOptions(device="cpu")


def test_all_tokens_give_the_full_answer(
    model: TorchModel, records: list[Record], f_theta: Path
) -> None:
    rankings = find_rankings([*RANKINGS, str(f_theta)])
    for record in (records[0], records[-1]):
        judged = judge(model, record, rankings, [1.0, 10_000], OPTIONS)
        assert len(judged.trials) == 2 * len(rankings)
        assert {trial.answer for trial in judged.trials} == {judged.answer}
        assert {trial.used for trial in judged.trials} == {1.0}


def test_f_theta_ranks(model: TorchModel, records: list[Record], f_theta: Path) -> None:
    question = model.prepare(records[0].question, [Image.open(records[0].pictures[0])])
    logits = predicted(FTheta.load(f_theta)[0], model.attention(question)).numpy()
    kept = top(logits, 20)
    judged = judge(model, records[0], find_rankings([str(f_theta)]), [20], OPTIONS)
    assert judged.trials[0].answer == model.text(model.answer(question, kept))
    assert judged.trials[0].ranking == str(f_theta)


def test_the_same_tokens_are_answered_once(
    model: TorchModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    answer = TorchModel.answer

    def count(*arguments: Any, **options: Any) -> list[int]:
        runs.append(1)
        return answer(*arguments, **options)

    monkeypatch.setattr(TorchModel, "answer", count)
    rankings = find_rankings(["attention,random"])
    judge(model, records[0], rankings, [131, 131, 1.0], OPTIONS)
    assert len(runs) == 3


def test_without_an_answer_relevance_ranks_nothing(
    model: TorchModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchModel, "answer", lambda *_, **__: [])
    judged = judge(model, records[0], find_rankings(["relevance,attention"]), [0.5], OPTIONS)
    assert not judged.right
    assert [trial.answer for trial in judged.trials] == [None, ""]
    assert not any(trial.right for trial in judged.trials)
    assert [row.unranked for row in group([judged])[0].rows] == [1, 0]


def test_several_pictures_share(model: TorchModel, tmp_path: Path) -> None:
    paths = (SCENE, NANO / "samples" / "chart-77-00016.png")
    record = Record("1", paths, "What letter is in the red square?", ("E",))
    judged = judge(model, record, find_rankings(["downsample"]), [0.5, 2], OPTIONS)
    halved, two = judged.trials
    assert 0.3 < halved.used <= 0.5
    assert two.used == 2 / judged.tokens
    several = Record("2", (*paths, *paths), "What letter is in the red square?", ("E",))
    (none,) = judge(model, several, find_rankings(["downsample"]), [2], OPTIONS).trials
    assert none.answer is None
