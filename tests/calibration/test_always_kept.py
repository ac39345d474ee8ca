"""Visual tokens that are never dropped: calibration keeps them too, and counts the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foveate.calibration.evaluation.answer_cache import AnswerCache

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.calibration.dataset import Record
from foveate.calibration.drawing.show import sheet_entry
from foveate.calibration.evaluation.evaluate import EvaluateOptions, judge
from foveate.calibration.evaluation.rankings import find_rankings
from foveate.calibration.ranking import top
from foveate.calibration.relevance.collect import CollectOptions, map_relevance
from foveate.calibration.torch_model import TorchModel
from tests.llava_onevision import noise

QUESTION = "What can be seen?"
KEEP = 0.3


@pytest.fixture(scope="module")
def model(llava_checkpoint: Path) -> TorchModel:
    """A checkpoint whose pictures have newlines, loaded."""
    return TorchModel.load(llava_checkpoint)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A question about a picture."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    noise(54, 54).save(path)
    return Record("one", (path,), QUESTION, ("nothing",))


def test_the_highest_candidates_are_found_and_the_rest_with_them() -> None:
    scores = np.array([5, 1, 4, 3, 2], np.float32)
    candidates = np.array([True, False, True, True, True])
    assert top(scores, 2, candidates).tolist() == [0, 1, 2]
    assert top(scores, 4, candidates).tolist() == [0, 1, 2, 3, 4]
    assert top(scores, 2).tolist() == [0, 2]


def test_answers_are_those_of_the_bundle(
    model: TorchModel, record: Record, llava_contrib_bundle: Bundle
) -> None:
    """Ranked by attention in both; the tokens that are kept are the same."""
    cache = AnswerCache.of(model, record, 4)
    (attention,) = find_rankings(["attention"])
    competing = int(cache.candidates.sum())
    assert 0 < competing < cache.total
    count = int(competing * KEEP + 0.5)
    said, used = cache.answer(attention, count)
    assert used == count + cache.total - competing
    with Pipeline.load(llava_contrib_bundle.root, device="cpu") as pipe:
        ask: dict[str, Any] = {"images": list(record.pictures), "max_new_tokens": 4}
        answer = pipe.generate(QUESTION, keep=KEEP, **ask)
        whole = pipe.generate(QUESTION, keep=1.0, **ask)
    assert (answer.visual.kept, answer.visual.total) == (used, cache.total)
    question = cache.answered.question
    scores = model.attention(question).mean((0, 1)).numpy()
    kept = top(scores, count, cache.candidates)
    assert kept.tolist() == answer.visual.indices.tolist()
    assert model.answer(question, kept, 4) == answer.token_ids
    assert said == model.text(answer.token_ids)
    assert cache.answer(attention, competing) == (model.text(whole.token_ids), cache.total)


def test_records_are_judged_by_what_is_left(model: TorchModel, record: Record) -> None:
    rankings = find_rankings(["attention", "random", "downsample"])
    judged = judge(model, record, rankings, [0.5, 3], EvaluateOptions(max_new_tokens=2))
    used = {(trial.ranking, trial.keep): trial.used for trial in judged.trials}
    always = judged.tokens - int(AnswerCache.of(model, record, 2).candidates.sum())
    assert used["attention", 3] == pytest.approx((always + 3) / judged.tokens)
    assert used["random", 0.5] == used["attention", 0.5]
    (none,) = (one for one in judged.trials if (one.ranking, one.keep) == ("downsample", 3))
    assert none.answer is None


def test_relevance_is_of_every_visual_token(model: TorchModel, record: Record) -> None:
    options = CollectOptions(max_new_tokens=8, keep_wrong=True)
    sample, outcome, _ = map_relevance(model, record, options)
    assert outcome == "kept"
    assert sample.relevance.shape == sample.picture.shape
    assert np.isfinite(sample.relevance).all() and np.abs(sample.relevance).max() > 0
    assert sample.attention.shape == (4, len(sample.picture))


def test_sheets_count_what_may_be_dropped(model: TorchModel, record: Record) -> None:
    torch.manual_seed(0)
    entry = sheet_entry(model, record, [0.5])
    competing = int(entry.visual.candidates.sum())
    left = entry.tokens - competing + int(competing * 0.5 + 0.5)
    assert [len(one.kept[0].indices) for one in entry.rankings] == [left, left]
