"""Videos through the whole pipeline, against transformers."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import ImageError
from foveate.families.base import Video, user_turn
from foveate.runtime.load import read_family, read_tokenizer
from tests.reference import Reference
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
