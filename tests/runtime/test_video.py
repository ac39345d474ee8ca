"""Videos through the whole pipeline, against transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.calibration.torch_model import TorchModel
from foveate.errors import ImageError, LimitError
from foveate.families.base import Video, user_turn
from foveate.runtime import Request, VideoFile, read_video
from foveate.runtime.load import read_family, read_tokenizer
from tests.conftest import NANO
from tests.reference import Reference
from tests.runtime.media.films import seconds, write_film
from tests.runtime.watched import grids

FRAMES = np.random.default_rng(3).integers(0, 256, (4, 224, 280, 3), dtype=np.uint8)
QUESTION = "What letter is in the red square?"


def test_a_video_is_answered_as_transformers_answers_it(nano_bundle: Bundle) -> None:
    reference = Reference()
    family = read_family(nano_bundle, read_tokenizer(nano_bundle))
    with Pipeline.load(nano_bundle.root, device="cpu") as pipe:
        answer = pipe.generate(QUESTION, video=FRAMES, keep=1.0, max_new_tokens=8)
        some = pipe.generate(QUESTION, video=list(FRAMES), keep=0.25, max_new_tokens=4)
        with pytest.raises(ImageError, match="one or the other"):
            pipe.generate(QUESTION, video=FRAMES, images=[FRAMES[0]])
        with pytest.raises(ImageError, match="no list of frames"):
            pipe.generate(QUESTION, video=FRAMES[0])
        with pytest.raises(ImageError, match="no frame"):
            pipe.generate(QUESTION, video=[])
    assert grids(answer.visual) == [(0, 8, 10), (2, 8, 10)]
    assert (some.visual.total, some.visual.kept) == (160, 40)

    video = Video(tuple(Image.fromarray(frame) for frame in FRAMES))
    visual = family.prepare([video])
    ids = torch.from_numpy(family.layout(user_turn(QUESTION, [video]), visual).token_ids)[None]
    model = reference.model
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=2 * (ids == model.config.video_token_id).int(),
            pixel_values_videos=torch.from_numpy(
                np.concatenate(visual.calls[0].inputs["pixel_values"])
            ),
            video_grid_thw=torch.tensor([[2, 16, 20]]),
            max_new_tokens=8,
            do_sample=False,
        )
    tokens = out[0, ids.shape[1] :].tolist()
    assert answer.token_ids == reference.without_stop(tokens)


def test_text_after_a_long_video_stands_behind_it(nano_bundle: Bundle) -> None:
    """Of more steps than rows: graphs and transformers' model agree at the positions of the paper.

    Those that transformers itself would take overlap with the video's; tokens are compared, which are
    chosen by the largest logit, so that there is no tolerance.
    """
    grey = [np.full((224, 224, 3), 40 + 5 * number, np.uint8) for number in range(40)]
    video = Video(tuple(map(Image.fromarray, grey)))
    family = read_family(nano_bundle, read_tokenizer(nano_bundle))
    prompt = family.layout(user_turn("What is in the video?", [video]), family.prepare([video]))
    first, last = prompt.visual_index[[0, -1]]
    placed = prompt.position_ids
    assert placed[:, first].tolist() == [first] * 3
    assert placed[0, last] == first + 19
    assert placed[:, last + 1].tolist() == [first + 20] * 3
    end = first + 20 + placed.shape[1] - (last + 1)
    assert (placed[:, -1].tolist(), prompt.next_position) == ([end - 1] * 3, end)

    frames = np.random.default_rng(4).integers(0, 256, (18, 224, 224, 3), dtype=np.uint8)
    with Pipeline.load(nano_bundle.root, device="cpu") as pipe:
        answer = pipe.generate(QUESTION, video=frames, keep=1.0, max_new_tokens=4, ignore_eos=True)
    model = TorchModel.load(NANO)
    question = model.prepare(QUESTION, [Video(tuple(map(Image.fromarray, frames)))])
    steps = question.prompt.position_ids[0, question.prompt.visual_index]
    assert steps.max() - steps.min() == 8
    language = model.language
    (tokens,) = language.answers(
        question.embeds, question.positions[:, None], question.prompt.next_position, set(), 4
    )
    assert answer.token_ids == tokens
    assert [row.tolist() for row in answer.visual.boxes[:64]] == [
        row.tolist() for row in question.visual.boxes[:64]
    ]


def test_tokens_of_32_frames_are_dropped_as_in_torch(
    nano_bundle: Bundle, contrib_bundle: Bundle
) -> None:
    """2,688 visual tokens, most of nano's context: the best are kept, and the same tokens follow.

    Attention, summed in another order, may be off by 1e-5 of itself. Greedy tokens have no tolerance.
    """
    small = np.random.default_rng(7).integers(0, 256, (32, 12, 14, 3), dtype=np.uint8)
    frames = [Image.fromarray(frame).resize((392, 336)) for frame in small]
    model = TorchModel.load(NANO)
    question = model.prepare(QUESTION, [Video(tuple(frames))])
    attention = model.attention(question).mean(dim=(0, 1)).numpy()
    least = np.sort(attention)[-672] * (1 - 1e-5)
    for bundle in (nano_bundle, contrib_bundle):
        with Pipeline.load(bundle.root, device="cpu") as pipe:
            answer = pipe.generate(
                QUESTION, video=frames, keep=0.25, max_new_tokens=4, ignore_eos=True
            )
        assert (answer.visual.total, answer.visual.kept) == (2688, 672)
        assert grids(answer.visual) == [(2 * step, 12, 14) for step in range(16)]
        assert (attention[answer.visual.indices] >= least).all()
        wanted = model.answer(question, answer.visual.indices, 4)
        assert answer.token_ids[: len(wanted)] == wanted


def test_a_file_is_asked_about_as_its_frames_are(nano_bundle: Bundle, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", seconds(180, start=10))
    ask = {"max_new_tokens": 2, "keep": 0.5}
    with Pipeline.load(nano_bundle.root, device="cpu") as pipe:
        whole = pipe.generate(QUESTION, video=read_video(film, fps=1), **ask)
        (same,) = pipe.generate_batch([Request(QUESTION, video=VideoFile(film, fps=1), **ask)])
        assert same.visual.relevance is not None
        np.testing.assert_array_equal(same.visual.relevance, whole.visual.relevance)
        assert same.token_ids == whole.token_ids
        assert pipe.encode(video=str(film)).visual.tokens == 2 * whole.visual.total
        with pytest.raises(ImageError, match="There is no file"):
            pipe.generate(QUESTION, video=tmp_path / "none.mp4")
        with pytest.raises(LimitError, match=r"180 frames of .*film.mp4.* visual tokens"):
            pipe.generate(QUESTION, video=VideoFile(film, fps=30))


def test_stop_tokens_may_be_passed_over(nano_bundle: Bundle) -> None:
    with Pipeline.load(nano_bundle.root, device="cpu") as pipe:
        ask = {"images": [FRAMES[0]], "max_new_tokens": 12, "keep": 1.0}
        usual = pipe.generate(QUESTION, **ask)
        longer = pipe.generate(QUESTION, **ask, ignore_eos=True)
        halted = pipe.generate(QUESTION, **ask, ignore_eos=True, stop_tokens=[longer.token_ids[0]])
    assert usual.finish_reason == "stop"
    assert (longer.finish_reason, len(longer.token_ids)) == ("length", 12)
    assert longer.token_ids[: len(usual.token_ids)] == usual.token_ids
    assert halted.token_ids == []
