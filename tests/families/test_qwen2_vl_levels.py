"""What graphs of contrib operators take: 8-bit levels, a call for each picture or video."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from foveate.families.base import Call, Video
from foveate.families.qwen2_vl import Qwen2VL
from foveate.families.qwen2_vl_pixels import shrunk
from foveate.families.qwen2_vl_settings import Settings
from tests.families.reference import TEMPLATE, control_ids


@pytest.fixture(scope="module")
def levels(tokenizer: Tokenizer) -> Qwen2VL:
    """The family for a graph that takes levels."""
    ids = control_ids(tokenizer)
    return Qwen2VL({"images": {}}, tokenizer, TEMPLATE, ids, levels=True)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of random levels."""
    random = np.random.default_rng((height, width, seed))
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Memory for padding, of a value that shows."""
    return np.full(shape, 7, dtype)


def patches(call: Call, settings: Settings) -> NDArray[np.float32]:
    """What the graph makes of a call's levels: patches as those of graphs of standard operators."""
    table = np.stack(
        [
            ((np.arange(256) * settings.rescale_factor).astype(np.float32) - np.float32(mean))
            / np.float32(std)
            for mean, std in zip(settings.image_mean, settings.image_std, strict=True)
        ]
    )
    side, places = settings.patch_size, call.inputs["position_ids"]
    row, column = places.T
    runs = (row[:, None] * side + np.arange(side)) * call.inputs["columns"] + column[:, None]
    steps = []
    for frames in call.inputs["levels"]:
        blocks = frames[:, runs].reshape(len(frames), len(places), side, side, 3)
        blocks = np.broadcast_to(blocks, (settings.temporal_patch_size, *blocks.shape[1:]))
        normal = np.stack([table[channel][blocks[..., channel]] for channel in range(3)])
        steps.append(normal.transpose(2, 0, 1, 3, 4).reshape(len(places), -1))
    return np.concatenate(steps)


MEDIA = [noise(84, 140), Video(tuple(noise(56, 84, seed) for seed in range(5))), noise(30, 200)]


def test_levels_become_the_patches_of_the_other_graphs(levels: Qwen2VL, family: Qwen2VL) -> None:
    ours, others = levels.prepare(MEDIA), family.prepare(MEDIA)
    pixels = [patches(call, levels.settings) for call in ours.calls]
    np.testing.assert_array_equal(
        np.concatenate(pixels),
        np.concatenate([row for call in others.calls for row in call.inputs["pixel_values"]]),
    )
    assert [call.tokens for call in ours.calls] == [int(np.prod(grid)) for grid in others.grids]
    assert (ours.grids, ours.moving) == (others.grids, (False, True, False))
    np.testing.assert_array_equal(ours.picture, others.picture)
    np.testing.assert_array_equal(ours.boxes, others.boxes)
    assert sorted(set(ours.picture.tolist())) == [0, 1, 3, 5, 7]


def test_padding_stands_after_a_pictures_own_patches(levels: Qwen2VL) -> None:
    (call,) = levels.prepare([noise(84, 140)]).calls
    padded = call.padded(call.tokens + 3, empty)
    assert padded.tokens == call.tokens
    np.testing.assert_array_equal(padded.inputs["lengths"], call.inputs["lengths"])
    for name, axis in (("position_ids", 0), ("levels", 2)):
        before, after = call.inputs[name], padded.inputs[name]
        assert after.shape[axis] == before.shape[axis] // call.tokens * (call.tokens + 3)
        np.testing.assert_array_equal(np.take(after, range(before.shape[axis]), axis), before)
    np.testing.assert_array_equal(
        patches(padded, levels.settings)[: 4 * call.tokens], patches(call, levels.settings)
    )


@pytest.mark.parametrize(
    ("frames", "most", "steps"), [(26, 100, [8, 4, 1]), (26, 24, [4, 4, 4, 1]), (2, 1, [1])]
)
def test_a_video_is_cut_into_parts_of_few_shapes(
    levels: Qwen2VL, frames: int, most: int, steps: list[int]
) -> None:
    (call,) = levels.prepare([Video(tuple(noise(56, 84, seed) for seed in range(frames)))]).calls
    parts = call.parts(most)
    assert [len(part.inputs["lengths"]) for part in parts] == steps
    assert sum(part.tokens for part in parts) == call.tokens
    together = np.concatenate([part.inputs["levels"] for part in parts])
    np.testing.assert_array_equal(together, call.inputs["levels"])
    assert {
        part.padded(10**3, empty).shapes for part in parts if len(part.inputs["lengths"]) > 1
    } == {part.shapes for part in parts if len(part.inputs["lengths"]) > 1}


@pytest.mark.parametrize("most", [1, 4, 9, 40])
def test_shrunk_pictures_give_at_most_so_many_tokens(family: Qwen2VL, most: int) -> None:
    pictures = [noise(200, 300), noise(56, 56), noise(28, 400)]
    visual = shrunk(family.settings, pictures, [most] * 3)
    counts = np.bincount(visual.picture, minlength=3)
    assert (counts >= 1).all() and (counts <= most).all()
    assert visual.tokens == counts.sum()
    if most == 40:
        assert counts[0] > 20
