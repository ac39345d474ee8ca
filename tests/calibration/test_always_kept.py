"""Visual tokens that are never dropped: calibration keeps them too, and counts the others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.calibration.dataset import Record
from foveate.calibration.drawing.show import sheet_entry
from foveate.calibration.evaluation.checkpoint import LoadedCheckpoint
from foveate.calibration.evaluation.judge import judge
from foveate.calibration.evaluation.options import EvaluateOptions
from foveate.calibration.evaluation.rankings import find_rankings
from foveate.calibration.evaluation.ways import kept_tokens
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


def loaded(model: TorchModel, most: int) -> LoadedCheckpoint:
    """The model, ranking by attention."""
    return LoadedCheckpoint(model, {one.name: one for one in find_rankings([])}, most, 16)


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
    scene = loaded(model, 4).open(record)
    visual = scene.visual
    competing = int(visual.candidates.sum())
    assert 0 < competing < visual.tokens
    scores = scene.scores("attention", QUESTION)
    assert scores is not None
    kept = kept_tokens(visual, KEEP, scores)
    assert len(kept) == int(competing * KEEP + 0.5) + visual.tokens - competing
    assert set(np.flatnonzero(~visual.candidates)) < set(kept)
    with Pipeline.load(llava_contrib_bundle.root, device="cpu") as pipe:
        ask: dict[str, Any] = {"images": list(record.pictures), "max_new_tokens": 4}
        answer = pipe.generate(QUESTION, keep=KEEP, **ask)
        whole = pipe.generate(QUESTION, keep=1.0, **ask)
    assert (answer.visual.kept, answer.visual.total) == (len(kept), visual.tokens)
    assert kept.tolist() == answer.visual.indices.tolist()
    assert model.answer(scene.about(QUESTION).question, kept, 4) == answer.token_ids
    everything = kept_tokens(visual, competing, scores)
    texts = [model.text(one.token_ids) for one in (answer, whole)]
    assert scene.answers(QUESTION, [kept, everything]) == texts


def test_records_are_judged_by_what_is_left(model: TorchModel, record: Record) -> None:
    scene = loaded(model, 2).open(record)
    (said,) = scene.answers(QUESTION, [np.arange(scene.visual.tokens)])
    options = EvaluateOptions(
        keep="0.5,3", ways=("own", "random", "smaller"), rule="contains", max_new_tokens=2
    )
    judged = judge(scene, replace(record, answers=(said,)), None, ["attention"], options)
    used = {(trial.way, trial.keep): trial.used for trial in judged.trials}
    always = int((~scene.visual.candidates).sum())
    assert used["own", 3] == pytest.approx((always + 3) / judged.tokens)
    assert used["random", 0.5] == used["own", 0.5]
    assert 0 < used["smaller", 3] <= 3 / judged.tokens


def test_relevance_is_of_every_visual_token(model: TorchModel, record: Record) -> None:
    options = CollectOptions(mode="grad-clamp", max_new_tokens=8, keep_wrong=True)
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
