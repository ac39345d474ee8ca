"""Questions about videos: opened as the runtime opens them, ranked and answered as those about pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.calibration.dataset import Record
from foveate.calibration.drawing.show import gather_samples, show, show_facts
from foveate.calibration.evaluation.checkpoint import LoadedCheckpoint
from foveate.calibration.evaluation.judge import judge
from foveate.calibration.evaluation.options import EvaluateOptions
from foveate.calibration.evaluation.rankings import find_rankings
from foveate.calibration.relevance.collect import CollectOptions, map_relevance
from foveate.calibration.torch_model import TorchModel
from foveate.errors import ImageError, LimitError
from foveate.families.base import Video
from foveate.runtime import VideoFile, read_video
from foveate.runtime.contact_sheet import EMPTY, WIDTH, layout
from foveate.runtime.heatmap import MARGIN, OUTLINE
from tests.conftest import NANO
from tests.runtime.media.films import seconds, write_film

QUESTION = "What letter is in the red square?"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A question about a film of four frames."""
    film = write_film(tmp_path_factory.mktemp("film") / "film.mp4", seconds(4, 2))
    return Record("1", (film,), QUESTION, ("E",), ("film.mp4",), moving=True)


def test_a_records_video_is_what_the_family_takes_of_it(model: TorchModel, record: Record) -> None:
    (video,) = model.open(record)
    assert isinstance(video, Video)
    count = len(video.frames)
    for frame, whole in zip(video.frames, read_video(record.pictures[0]), strict=True):
        expected = model.family.fit_frame(whole, count)
        np.testing.assert_array_equal(np.asarray(frame), np.asarray(expected))
    with pytest.raises(ImageError, match="not made smaller"):
        model.prepare(QUESTION, [video], [4])


def test_what_a_video_answers_and_keeps(model: TorchModel, record: Record) -> None:
    options = EvaluateOptions(keep="0.5", max_new_tokens=2, ways=("own", "random", "smaller"))
    subject = LoadedCheckpoint(model, {one.name: one for one in find_rankings([])}, 2, 16)
    scene = subject.open(record)
    (said,) = scene.answers(record.question, [np.arange(scene.visual.tokens)])
    right = replace(record, answers=(said,))
    judged = judge(scene, right, None, ["attention"], options)
    assert (judged.score, judged.tokens) == (1, 2 * 7 * 10)
    assert [(one.way, one.used) for one in judged.trials] == [("own", 0.5), ("random", 0.5)]
    sample, outcome, _ = map_relevance(model, record, CollectOptions(mode="grad", keep_wrong=True))
    assert (outcome, sample.pictures) == ("kept", ("film.mp4",))
    assert sample.picture is not None
    assert np.unique(sample.picture).tolist() == [0, 2]


def test_videos_that_cannot_be_taken(model: TorchModel, tmp_path: Path, record: Record) -> None:
    gone = Record("2", (tmp_path / "gone.mp4",), QUESTION, ("E",), moving=True)
    with pytest.raises(ImageError, match="There is no file"):
        model.open(gone)
    long = write_film(tmp_path / "long.mp4", seconds(400, 2), options={"preset": "ultrafast"})
    with pytest.raises(LimitError, match=r"visual tokens, and the model.s context has 4096"):
        model.open(Record("3", (long,), QUESTION, ("E",), moving=True))
    assert VideoFile(long).fps is None
    with pytest.raises(ImageError, match="There is no file"):
        show(NANO, tmp_path / "sheet.png", [gone])
    assert not (tmp_path / "sheet.png").exists()


def test_a_video_is_drawn_frame_by_frame(
    model: TorchModel, record: Record, f_theta: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    (entry,) = show(NANO, out, [record], compressor=f_theta, keep="0.5,9", mode="mean")
    assert entry.seconds == (0.0, 0.5, 1.0, 1.5)
    assert len(entry.pictures) == 4
    relevance, predicted = entry.rankings
    assert [len(kept.indices) for kept in predicted.kept] == [70, 9]
    question = model.prepare(QUESTION, model.open(record))
    answer = model.answer(question, relevance.kept[1].indices)
    assert relevance.kept[1].answer == model.text(answer)
    with Image.open(out) as sheet:
        sheet.load()
        assert sheet.width == WIDTH
        # Two rankings, of each two keeps of two frames, side by side.
        _, _, (_, height) = layout(2, entry.pictures[0].size)
        assert sheet.height > 4 * height
        pixels = np.asarray(sheet)
    bars = (pixels[:, MARGIN, None] == (OUTLINE, EMPTY)).all(axis=-1).any(axis=1)
    assert np.count_nonzero(np.diff(bars.astype(int)) == 1) == 4
    facts = show_facts([entry], out)["samples"][0]
    assert facts["tokens_by_image"] == [70, 0, 70, 0]
    (sample,) = gather_samples([], [QUESTION], None, [], record.pictures[0])
    assert (sample.moving, sample.pictures) == (True, record.pictures)
    with pytest.raises(ImageError, match="one or the other"):
        gather_samples(["a.png"], [QUESTION], None, [], record.pictures[0])
