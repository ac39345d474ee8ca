"""Videos: patches against transformers' image processor frame by frame, positions against its model.

Its own video processor needs torchvision; what it adds to the image processor is which two frames stand
in a patch, and that is written out here.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from foveate.errors import ImageError, PromptError
from foveate.families.base import Video
from foveate.families.qwen2_vl import Qwen2VL
from tests.families.reference import TEMPLATE, counted_positions, lay_out, make_family

VIDEO = TEMPLATE.replace(
    "{%- elif 'text' in part -%}",
    "{%- elif part['type'] == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>\n"
    "{%- elif 'text' in part -%}",
)


def noise(count: int, height: int = 84, width: int = 112) -> list[Image.Image]:
    """Frames that all differ."""
    levels = np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)
    return [Image.fromarray(frame) for frame in levels]


def frame_patches(reference: Any, frame: Image.Image) -> NDArray[np.float32]:
    """One frame's patches float32 [P, 3, 14, 14] from the reference."""
    found = reference.image_processor(images=[frame], return_tensors="np")["pixel_values"]
    patches = found.reshape(-1, 3, 2, 14, 14)
    np.testing.assert_array_equal(patches[:, :, 0], patches[:, :, 1])
    return np.asarray(patches[:, :, 0])


@pytest.mark.parametrize(("count", "size"), [(4, (84, 112)), (3, (90, 130)), (1, (56, 56))])
def test_two_frames_stand_in_a_patch(
    family: Qwen2VL, reference: Any, count: int, size: tuple[int, int]
) -> None:
    frames = noise(count, *size)
    visual = family.prepare([Video(tuple(frames))])
    inputs = visual.calls[0].inputs
    singles = [frame_patches(reference, frame) for frame in frames]
    singles += singles[-1:] * (count % 2)
    steps = [
        np.stack([first, second], axis=2)
        for first, second in zip(singles[::2], singles[1::2], strict=True)
    ]
    expected = np.stack(steps).reshape(len(steps), -1, 3 * 2 * 14 * 14)
    np.testing.assert_array_equal(inputs["pixel_values"], expected)

    still = family.prepare(frames[:1])
    assert visual.grids == ((len(steps), *still.grids[0][1:]),)
    assert (visual.moving, still.moving) == ((True,), (False,))
    np.testing.assert_array_equal(visual.boxes, np.tile(still.boxes, (len(steps), 1)))
    np.testing.assert_array_equal(
        visual.picture, np.repeat(2 * np.arange(len(steps)), still.tokens)
    )
    np.testing.assert_array_equal(
        inputs["position_ids"], np.tile(still.calls[0].inputs["position_ids"], (len(steps), 1, 1))
    )


@pytest.mark.parametrize("count", [2, 6])
def test_positions_are_the_references(tokenizer: Tokenizer, count: int) -> None:
    """Of videos that have no more steps than rows or columns."""
    family = make_family(tokenizer, VIDEO)
    video = Video(tuple(noise(count, 56, 84)))
    ours = lay_out(family, "What happens?", [video])
    model = Qwen2VLModel(
        Qwen2VLConfig(
            text_config={
                "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 512,
                "rope_parameters": {
                    "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1],
                },
            },
            vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16},
        )
    )  # fmt: skip
    ids = torch.from_numpy(ours.token_ids)[None]
    pad = tokenizer.token_to_id("<|video_pad|>")
    positions, delta = model.get_rope_index(
        ids, 2 * (ids == pad).int(), video_grid_thw=torch.tensor([[count // 2, 4, 6]])
    )
    np.testing.assert_array_equal(ours.position_ids, positions[:, 0].numpy())
    assert ours.next_position == len(ours.token_ids) + int(delta)
    np.testing.assert_array_equal(ours.visual_index, np.flatnonzero(ours.token_ids == pad))
    assert len(ours.visual_index) == family.prepare([video]).tokens == 6 * (count // 2)
    said = tokenizer.decode(ours.token_ids[ours.instruction_index].tolist())
    assert said == "What happens?"


@pytest.mark.parametrize("counts", [[12], [12, 1], [0, 40], [1, 9, 0, 2, 30]], ids=str)
def test_text_goes_on_behind_the_last_position_of_a_video(
    tokenizer: Tokenizer, counts: list[int]
) -> None:
    """Videos longer in time than they are wide, others, and pictures (0), in any order."""
    family = make_family(tokenizer, VIDEO)
    media = [
        Video(tuple(noise(count, 56, 84))) if count else noise(1, 84, 56)[0] for count in counts
    ]
    ours = lay_out(family, "What happens?", media)
    pads = [tokenizer.token_to_id(pad) for pad in ("<|video_pad|>", "<|image_pad|>")]
    grids = [((count + 1) // 2, 2, 3) if count else (1, 3, 2) for count in counts]
    counted = counted_positions(ours.token_ids.tolist(), pads, grids)
    np.testing.assert_array_equal(ours.position_ids.T, counted)
    assert ours.next_position == max(map(max, counted)) + 1
    text = ours.position_ids[:, ours.text_index]
    assert (np.diff(text) > 0).all()


def test_what_is_no_video_is_refused(tokenizer: Tokenizer, family: Qwen2VL) -> None:
    for frames in ([], [*noise(1), *noise(1, 56, 56)]):
        with pytest.raises(ImageError, match="frames of one size"):
            family.prepare([Video(tuple(frames))])
    with pytest.raises(PromptError, match="0 places for 1 video;"):
        lay_out(family, "What?", [Video(tuple(noise(2)))])
