"""One question: what every way keeps of its tokens, and that each choice is answered once."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from foveate.calibration.boxes import Box, ShownTokens
from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.bundle import LoadedBundle
from foveate.calibration.evaluation.checkpoint import LoadedCheckpoint
from foveate.calibration.evaluation.judge import judge
from foveate.calibration.evaluation.judged import Judged, Trial
from foveate.calibration.evaluation.options import EvaluateOptions
from foveate.calibration.evaluation.others import find_other
from foveate.calibration.evaluation.ways import WAYS, choices
from foveate.calibration.torch_model import TorchModel
from tests.calibration.conftest import SCENE
from tests.conftest import NANO

KEEPS = [0.5, 0.1, 4]
OPTIONS = EvaluateOptions(keep="0.5,0.1,4")


@pytest.fixture(scope="module")
def judged(subject: LoadedCheckpoint, boxed: list[Record]) -> Judged:
    """A question with boxes, in all ways."""
    other = find_other(boxed[0], boxed[:4])
    return judge(subject.open(boxed[0]), boxed[0], other, ["attention"], OPTIONS, "data")


def trial(judged: Judged, way: str, keep: float | int | None) -> Trial:
    (found,) = [one for one in judged.trials if (one.way, one.keep) == (way, keep)]
    return found


def test_every_way_chooses_what_it_says(subject: LoadedCheckpoint, boxed: list[Record]) -> None:
    record, other = boxed[0], boxed[2]
    scene = subject.open(record)
    shown = ShownTokens.of(scene.visual, record.boxes)
    made = choices(scene, record, other, shown, ["attention"], KEEPS, "Describe it.", 0)
    kept = {(one.way, one.keep): one.kept for one in made}
    assert {way for way, _ in kept} == set(WAYS) - {"smaller"}
    total = scene.visual.tokens
    for way, prompt in (
        ("own", record.question),
        ("other", other.question),
        ("neutral", "Describe it."),
    ):
        scores = scene.scores("attention", prompt)
        assert scores is not None
        for keep, count in ((0.5, 72), (0.1, 14), (4, 4)):
            best = np.sort(np.argsort(-scores, kind="stable")[:count])
            assert kept[way, keep].tolist() == best.tolist()
    asked = set(np.flatnonzero(shown.asked).tolist())
    touched = set(np.flatnonzero(shown.touched).tolist())
    assert 9 <= len(asked) <= len(touched) <= 25
    assert asked <= set(kept["oracle", 0.5].tolist())
    assert set(kept["oracle", 4].tolist()) < asked
    for keep in KEEPS:
        assert not touched & set(kept["without", keep].tolist())
        assert len(kept["without", keep]) == len(kept["own", keep])
    assert set(kept["all-but-it", None].tolist()) == set(range(total)) - touched
    (middle,) = kept["one-token", None].tolist()
    left, top, right, bottom = scene.visual.boxes[middle]
    box = record.boxes[0].box
    assert left <= (box[0] + box[2]) / 2 <= right
    assert top <= (box[1] + box[3]) / 2 <= bottom
    centre = scene.visual.boxes[kept["centre", 4]]
    assert centre[:, :2].min() >= 5 / 12 - 1e-6
    assert centre[:, 2:].max() <= 7 / 12 + 1e-6


def test_what_is_counted(judged: Judged) -> None:
    assert (judged.data, judged.id, judged.tokens, judged.score) == ("data", "1-1", 144, 1.0)
    assert judged.other in ("1-2", "1-3", "1-4")
    own = trial(judged, "own", 0.1)
    assert own.used == 14 / 144
    assert own.recall is not None
    assert own.precision is not None
    assert own.recall * judged.asked == pytest.approx(own.precision * 14)
    assert trial(judged, "oracle", 0.5).recall == 1
    assert trial(judged, "without", 0.5).recall == 0
    assert trial(judged, "smaller", 0.5).used <= 0.5
    (half, *_), chance = judged.overlaps, 1 / 3
    assert half.keep == 0.5
    assert chance < half.chance < half.jaccard < 1
    assert trial(judged, "all-but-it", None).score == 0


def test_the_bundle_gives_what_the_checkpoint_gives(
    judged: Judged, bundle_subject: LoadedBundle, boxed: list[Record]
) -> None:
    """Of one model: kept tokens are chosen by sorting, answers by argmax, so there is no tolerance."""
    other = find_other(boxed[0], boxed[:4])
    again = judge(bundle_subject.open(boxed[0]), boxed[0], other, ["attention"], OPTIONS, "data")
    assert again == judged


def test_the_same_tokens_are_answered_once(
    subject: LoadedCheckpoint, boxed: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    answers, encode, encoded = TorchModel.answers, TorchModel.encode, []

    def note(self: TorchModel, question: Any, kept: Any, most: int) -> Any:
        asked.extend(one.tobytes() for one in kept)
        return answers(self, question, kept, most)

    def count(self: TorchModel, *arguments: Any) -> Any:
        encoded.append(arguments)
        return encode(self, *arguments)

    monkeypatch.setattr(TorchModel, "answers", note)
    monkeypatch.setattr(TorchModel, "encode", count)
    ways = ("own", "other", "random", "smaller")
    options = replace(OPTIONS, keep="143,144,1.0", ways=ways)
    scene = subject.open(boxed[0])
    for record, other in (boxed[:2], boxed[1::-1]):
        judge(scene, record, other, ["attention"], options)
    assert len(set(asked)) <= 2 * (1 + len(ways))
    assert asked.count(np.arange(144).tobytes()) == 2
    # As it is, and once smaller.
    assert len(encoded) == 2


def test_a_wrong_answer_is_tried_no_further(subject: LoadedCheckpoint, boxed: list[Record]) -> None:
    wrong = replace(boxed[0], answers=("Z",))
    judged = judge(subject.open(wrong), wrong, boxed[1], ["attention"], OPTIONS)
    assert (judged.score, judged.trials, judged.outcome) == (0.0, (), "wrong")


def test_words_are_shared(subject: LoadedCheckpoint, boxed: list[Record]) -> None:
    record = replace(
        boxed[0], question="Describe the picture.", answers=("red square A, blue square",),
        measure="words", boxes=(),
    )  # fmt: skip
    judged = judge(subject.open(record), record, boxed[1], ["attention"], OPTIONS)
    assert 0 < judged.score < 1
    assert all(0 <= one.score <= 1 for one in judged.trials)
    assert judged.outcome == "described"


def test_several_pictures_share(model: TorchModel) -> None:
    subject = LoadedCheckpoint(model, {}, 8, 16)
    paths = (SCENE, NANO / "samples" / "chart-77-00016.png")
    record = Record("1", paths, "What letter is in the red square?", ("?",))
    options = replace(OPTIONS, keep="0.5,2,1", ways=("smaller",))
    for pictures, used in ((paths, [0.5, 0, 1]), ((*paths, SCENE), [0.5, 1])):
        scene = subject.open(replace(record, pictures=pictures))
        (said,) = scene.answers(record.question, [np.arange(scene.visual.tokens)])
        judged = judge(scene, replace(record, answers=(said,)), None, [], options)
        found = [one.used for one in judged.trials]
        # No three pictures make two tokens.
        assert found == pytest.approx(used, abs=0.15)
        assert all(share <= limit + 0.02 for share, limit in zip(found, used, strict=True))


def test_boxes_that_no_token_or_frame_shows(subject: LoadedCheckpoint, boxed: list[Record]) -> None:
    scene = subject.open(boxed[0])
    beyond = replace(boxed[0], boxes=(Box(1, (0.0, 0.0, 0.5, 0.5)),))
    with pytest.raises(ValueError, match="frame 1, and the model takes 1"):
        judge(scene, beyond, None, ["attention"], OPTIONS)
