"""LLaVA-OneVision's pixels, tokens and positions against transformers'. Tolerance of pixels: none."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaOnevisionConfig
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from foveate.errors import BundleError, CheckpointError, ImageError, LimitError, PromptError
from foveate.families.base import Medium, PixelLimits, Video, VisualInput, opened, user_turn
from foveate.families.llava_onevision import LlavaOnevision
from foveate.families.taps import interpolated
from tests.checkpoints import change_json
from tests.families.test_qwen2_vl_preprocess import MODES, same_pass_order
from tests.families.test_qwen2_vl_preprocess import noise as of_mode
from tests.llava_onevision import (
    PATCH,
    SIDE,
    TEMPLATE,
    Reference,
    film,
    noise,
    pinpoints,
    train_tokenizer,
)

REAL = 384
VIDEO_FILE = "video_preprocessor_config.json"
CLOSE = {"rtol": 0, "atol": 1e-5}
"""Of values up to 5: float32 sums of four products in another order."""
QUESTION = "What can be seen?"


@pytest.fixture(scope="module")
def checkpoint(llava_checkpoint: Path) -> Path:
    """A random checkpoint of tiles of 13 x 13 patches."""
    return llava_checkpoint


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    """Transformers' processor and model."""
    return Reference(checkpoint)


def make(preprocessing: dict[str, Any], **options: Any) -> LlavaOnevision:
    """The family around the small tokenizer."""
    tokenizer = train_tokenizer()
    names = {"image": "<image>", "video": "<video>", "eos": "<|im_end|>"}
    tokens = {role: tokenizer.token_to_id(text) for role, text in names.items()}
    return LlavaOnevision(preprocessing, tokenizer, TEMPLATE, tokens, **options)


@pytest.fixture(scope="module")
def family(checkpoint: Path) -> LlavaOnevision:
    """The family with the checkpoint's settings."""
    return make(LlavaOnevision.settings_from_checkpoint(checkpoint))


def pixels(visual: VisualInput) -> np.ndarray[Any, Any]:
    """All tiles."""
    (call,) = visual.calls
    return np.asarray(call.inputs["pixel_values"])


def wanted_pixels(processor: Any, media: Sequence[Medium]) -> np.ndarray[Any, Any]:
    """The reference's tiles: of one picture several, of each of several one, and of each frame one."""
    stills = [opened(one) for one in media if not isinstance(one, Video)]
    tiles = iter(processor([stills], return_tensors="pt")["pixel_values"] if stills else ())
    found = []
    for medium in media:
        if isinstance(medium, Video):
            frames = (processor([[opened(frame)]], return_tensors="pt") for frame in medium.frames)
            found += [frame["pixel_values"][0, :1].numpy() for frame in frames]
        else:
            found.append(next(tiles).numpy())
    return np.concatenate(found)


# Pixels


@same_pass_order
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900))
@example(1, 30)
@example(SIDE, SIDE)
@example(6 * SIDE, 6 * SIDE)
@example(900, 7)
def test_a_picture_of_any_size_is_cut_as_the_reference_does(height: int, width: int) -> None:
    """Around the least size that is taken, both refuse, each in its own way."""
    family = make({"images": {"side": SIDE, "patch_size": PATCH, "pinpoints": pinpoints(SIDE)}})
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=pinpoints(SIDE),
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    picture = noise(height, width)
    try:
        wanted = wanted_pixels(processor, [picture])
    except TypeError:
        with pytest.raises(
            ImageError, match=r"^Picture 1 is .* so long that nothing is left of it"
        ):
            family.prepare([picture])
        return
    np.testing.assert_array_equal(pixels(family.prepare([picture])), wanted)


@same_pass_order
@pytest.mark.parametrize("size", pinpoints(REAL), ids=str)
def test_every_pinpoint_of_the_real_geometry_is_chosen(size: list[int]) -> None:
    family = make({"images": {}})
    height, width = size
    visual = family.plan([Image.new("L", (width, height))])
    (shown,) = visual.shown
    assert shown.canvas is not None
    assert [shown.canvas.down * REAL, shown.canvas.across * REAL] == size
    assert shown.tiles == 1 + height * width // REAL**2


@same_pass_order
def test_the_real_geometry_is_cut_as_the_reference_does() -> None:
    family = make({"images": {}})
    processor = LlavaOnevisionImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    picture = noise(700, 1000)
    np.testing.assert_array_equal(
        pixels(family.prepare([picture])), wanted_pixels(processor, [picture])
    )


@same_pass_order
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=2, max_size=4))
def test_several_pictures_of_any_sizes_have_a_tile_each(sizes: list[tuple[int, int]]) -> None:
    mean = [0.4, 0.5, 0.6]
    family = make({"images": {"side": SIDE, "patch_size": PATCH, "pinpoints": [[SIDE, SIDE]],
                              "image_mean": mean}})  # fmt: skip
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=mean, image_std=[0.5] * 3
    )
    media = [noise(*size) for size in sizes]
    np.testing.assert_array_equal(pixels(family.prepare(media)), wanted_pixels(processor, media))


@same_pass_order
@pytest.mark.parametrize("mode", MODES)
def test_pixels_of_every_mode_are_the_references(
    family: LlavaOnevision, reference: Reference, mode: str
) -> None:
    picture = of_mode(67, 91, mode)
    for media in ([picture], [picture, noise(30, 20)], [Video((picture,))]):
        wanted = wanted_pixels(reference.pictures, media)
        np.testing.assert_array_equal(pixels(family.prepare(media)), wanted)


def test_levels_become_the_pixels_that_are_normalised_here(checkpoint: Path) -> None:
    preprocessing = LlavaOnevision.settings_from_checkpoint(checkpoint)
    plain, levels = make(preprocessing), make(preprocessing, levels=True)
    media = [noise(60, 100), film(2)]
    (call,) = levels.prepare(media).calls
    tiles = call.inputs["levels"]
    assert (tiles.dtype, tiles.shape[1:]) == (np.uint8, (SIDE, SIDE, 3))
    table = plain.settings.table
    wanted = np.stack([table[channel][tiles[..., channel]] for channel in range(3)], axis=1)
    np.testing.assert_array_equal(pixels(plain.prepare(media)), wanted)


# Tokens and positions

ASKED: dict[str, list[Medium]] = {
    "tall": [noise(100, 60)],
    "wide": [noise(60, 170)],
    "one-tile": [noise(54, 54)],
    "interpolated": [noise(500, 500)],
    "strip": [noise(10, 600)],
    "nothing-unpadded": [noise(600, 4)],
    "two": [noise(100, 60), noise(60, 100)],
    "video": [film(3)],
    "one-frame": [film(1)],
    "video-before-picture": [film(2), noise(70, 70)],
    "all": [noise(30, 80), film(2), noise(80, 81), film(1)],
}


@pytest.mark.parametrize("name", ASKED)
def test_tokens_and_features_are_those_of_transformers(
    family: LlavaOnevision, reference: Reference, name: str
) -> None:
    """The taps of the vision tower's rows are what transformers unpads, pools and interpolates."""
    media = ASKED[name]
    messages = user_turn(QUESTION, media)
    visual = family.prepare(media)
    prompt = family.layout(messages, visual)
    request = reference.prepare(messages, media)
    ids = request.inputs["input_ids"][0].numpy()
    np.testing.assert_array_equal(prompt.token_ids, ids)
    order = np.argsort(prompt.visual_index)
    np.testing.assert_array_equal(prompt.visual_index[order], request.visual)
    np.testing.assert_array_equal(prompt.position_ids, np.arange(len(ids))[None])
    assert prompt.next_position == len(ids)

    model = reference.model.model
    with torch.no_grad():
        states = model.vision_tower(torch.from_numpy(pixels(visual)), output_hidden_states=True)
        rows = model.multi_modal_projector(states.hidden_states[-1]).flatten(0, 1)
        output = torch.cat([rows, model.image_newline[None]]).numpy()
    assert len(output) == visual.output_rows == sum(call.tokens for call in visual.calls)
    assert visual.rows is not None and visual.weights is not None
    found = np.einsum("nk,nkh->nh", visual.weights, output[visual.rows])
    np.testing.assert_allclose(found[order], request.visual_embeds.numpy(), **CLOSE)

    newline = (visual.rows == len(rows)).any(axis=1)
    np.testing.assert_array_equal(visual.candidates, ~newline)
    assert (visual.boxes[newline] == 0).all()
    np.testing.assert_allclose(visual.weights.sum(axis=1), 1, rtol=1e-6)
    plan = family.plan(media)
    np.testing.assert_array_equal(plan.rows, visual.rows)
    assert plan.tokens == visual.tokens


def test_the_most_tokens_of_a_picture_of_the_real_geometry() -> None:
    visual = make({"images": {}}).plan([Image.new("L", (1154, 956))])
    assert (visual.tokens, int((~visual.candidates).sum())) == (8667 + 81, 81)


def test_counts_of_the_real_geometry_are_the_processors() -> None:
    """Sizes at which a picture has just too many tokens, or just not, are among them."""
    family = make({"images": {}})
    pictures = LlavaOnevisionImageProcessorPil()

    class Counting:
        """What transformers' processor counts by."""

        image_processor, num_image_tokens, vision_aspect_ratio = pictures, 729, "anyres_max_9"

    from transformers.models.llava_onevision.processing_llava_onevision import (
        LlavaOnevisionProcessor,
    )

    count = LlavaOnevisionProcessor._get_number_of_features
    Counting._get_unpadded_features = LlavaOnevisionProcessor._get_unpadded_features  # type: ignore[attr-defined]
    random = np.random.default_rng(4)
    drawn = np.exp(random.uniform(np.log(20), np.log(3000), (300, 2))).astype(int).tolist()
    just = [(1152, 1152 + step) for step in range(-30, 300, 7)]
    pooled = 0
    for height, width in [*drawn, *just, (400, 2304), (2304, 400), (956, 1154)]:
        visual = family.plan([Image.new("1", (width, height))])
        assert visual.tokens == count(Counting(), height, width, REAL, REAL), (height, width)
        assert visual.weights is not None
        pooled += bool((visual.weights[:, 1] > 0).any())
    assert 30 < pooled < 300


@pytest.mark.parametrize(("inside", "outside"), [((27, 27), (14, 14)), ((13, 20), (7, 9)), ((5, 9), (9, 4))])  # fmt: skip
def test_interpolation_is_torchs(inside: tuple[int, int], outside: tuple[int, int]) -> None:
    values = torch.randn(1, 3, *inside, generator=torch.manual_seed(1))
    rows, weights = interpolated(np.arange(inside[0] * inside[1]).reshape(inside), *outside)
    found = np.einsum("nk,cnk->cn", weights, values.numpy().reshape(3, -1)[:, rows])
    wanted = torch.nn.functional.interpolate(values, size=outside, mode="bilinear")
    np.testing.assert_allclose(found, wanted.numpy().reshape(3, -1), rtol=0, atol=1e-6)
    assert rows.shape == weights.shape == (outside[0] * outside[1], 4)


# What tokens show


def test_boxes_of_a_picture_alone_are_those_of_its_pixels(family: LlavaOnevision) -> None:
    """60 x 100 is enlarged to 65 x 108 on 2 x 2 tiles of 54, where it begins 21 pixels down."""
    visual = family.plan([noise(60, 100)])
    whole, fine = visual.boxes[: 13**2].reshape(13, 13, 4), visual.boxes[13**2 :]
    np.testing.assert_allclose(whole[2, 5], np.array([20, 8, 24, 12]) / 54, rtol=1e-6)
    assert whole[-1, -1].tolist() == pytest.approx([48 / 54, 48 / 54, 52 / 54, 52 / 54])
    rows = fine.reshape(-1, 27, 4)[:, :26]
    assert len(rows) == 16
    # The first row of patches that is left is the fifth, from 20 to 24; the second tile's begin at 54.
    np.testing.assert_allclose(rows[0, 0], [0, 0, 4 / 108, 3 / 65], rtol=1e-5)
    np.testing.assert_allclose(rows[8, 13], [54 / 108, 33 / 65, 58 / 108, 37 / 65], rtol=1e-5)
    assert (visual.picture == 0).all()


def test_boxes_of_several_pictures_leave_the_padding_out(family: LlavaOnevision) -> None:
    """A picture twice as high as wide is in the middle half of its tile."""
    visual = family.plan([noise(100, 50), noise(50, 50)])
    first = visual.boxes[: 13**2].reshape(13, 13, 4)
    empty = (first[..., 2:] <= first[..., :2]).any(axis=-1)
    columns = np.arange(13) * 4
    padding = (columns + 4 <= 13.5 + 1) | (columns >= 40.5 - 1)
    np.testing.assert_array_equal(empty, np.broadcast_to(padding, (13, 13)))
    np.testing.assert_allclose(
        first[0, 5], [(20 - 13.5) / 27, 0, (24 - 13.5) / 27, 4 / 54], rtol=1e-5
    )
    assert visual.picture.tolist() == [0] * 170 + [1] * 170


def test_frames_are_counted_as_pictures(family: LlavaOnevision) -> None:
    visual = family.plan([noise(20, 30), film(2), noise(20, 30)])
    assert visual.picture.tolist() == [0] * 170 + [1] * 49 + [2] * 50 + [3] * 170
    assert visual.candidates[170:269].tolist() == [True] * 98 + [False]
    np.testing.assert_allclose(
        visual.boxes[170], [0, 0, 13 / 7 * 4 / 54, 13 / 7 * 4 / 54], rtol=1e-6
    )


def test_no_media_take_no_run(family: LlavaOnevision) -> None:
    visual = family.prepare([])
    assert (visual.tokens, visual.calls, visual.output_rows) == (0, (), 0)
    prompt = family.layout([{"role": "user", "content": QUESTION}], visual)
    assert prompt.visual_index.shape == (0,)


def test_a_run_has_few_tiles(family: LlavaOnevision) -> None:
    visual = family.prepare([noise(500, 500)])
    (call,) = visual.calls
    assert [len(part.inputs["pixel_values"]) for part in call.parts(400)] == [2] * 18 + [1]
    assert [part.rows - part.tokens for part in call.parts(400)] == [1] * 18 + [0]
    assert (visual.largest_run(1), visual.largest_run(400)) == (170, 339)


# What is refused, and what a request may change


def test_limits_leave_the_sizes_that_are_within_them(family: LlavaOnevision) -> None:
    picture, tile = noise(300, 300), SIDE**2
    whole = family.plan([picture])
    small = family.limited(PixelLimits(max_pixels=4 * tile + 1)).plan([picture])
    assert small.shown[0].tiles == 5
    assert whole.shown[0].tiles == 37
    tiny = noise(20, 20)
    large = family.limited(PixelLimits(min_pixels=9 * tile)).plan([tiny])
    assert (family.plan([tiny]).shown[0].tiles, large.shown[0].tiles) == (2, 10)
    for limits in (
        PixelLimits(max_pixels=tile - 1),
        PixelLimits(min_pixels=37 * tile),
        PixelLimits(min_pixels=7 * tile, max_pixels=7 * tile),
        PixelLimits(max_pixels=1),
    ):
        with pytest.raises(LimitError, match=f"from {tile} to {36 * tile}; give limits"):
            family.limited(limits)


def test_frames_are_fitted_as_they_are_decoded(family: LlavaOnevision) -> None:
    video = film(3)
    fitted = Video(tuple(family.fit_frame(opened(frame), 3) for frame in video.frames))
    assert fitted.frames[0].size == (SIDE, SIDE)
    np.testing.assert_array_equal(pixels(family.prepare([video])), pixels(family.prepare([fitted])))


@pytest.mark.parametrize("frames", [(), (noise(20, 20), noise(20, 21))], ids=["none", "unequal"])
def test_what_is_no_video_is_refused(family: LlavaOnevision, frames: tuple[Any, ...]) -> None:
    with pytest.raises(ImageError, match="at least one frame, and frames of one size"):
        family.prepare([Video(frames)])


def test_a_bundle_without_video_token_takes_none(checkpoint: Path) -> None:
    tokenizer = train_tokenizer()
    tokens = {"image": tokenizer.token_to_id("<image>"), "eos": tokenizer.token_to_id("<|im_end|>")}
    preprocessing = LlavaOnevision.settings_from_checkpoint(checkpoint)
    family = LlavaOnevision(preprocessing, tokenizer, TEMPLATE, tokens)
    media = [film(1)]
    with pytest.raises(PromptError, match="names no 'video' token"):
        family.layout(user_turn(QUESTION, media), family.plan(media))


@pytest.mark.parametrize("text", ["<image>", "look <video> here"])
def test_placeholders_in_a_question_are_refused(family: LlavaOnevision, text: str) -> None:
    media = [noise(20, 20)]
    with pytest.raises(PromptError, match="control token"):
        family.layout(user_turn(text, media), family.plan(media))


# Settings


def test_what_a_file_leaves_out_is_the_references_default(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    family = make(LlavaOnevision.settings_from_checkpoint(tmp_path))
    processor = LlavaOnevisionImageProcessorPil.from_pretrained(tmp_path)
    media = [noise(30, 50), noise(20, 20)]
    np.testing.assert_array_equal(pixels(family.prepare(media)), wanted_pixels(processor, media))


def test_settings_are_those_of_the_checkpoint(checkpoint: Path, family: LlavaOnevision) -> None:
    found = LlavaOnevision.settings_from_checkpoint(checkpoint)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found))
    assert (family.settings.side, family.settings.patch_size) == (SIDE, PATCH)
    assert family.settings.background == (127, 102, 153)
    assert family.settings.most_tiles == 9
    rule = family.frame_rule
    assert (rule.frames, rule.least, rule.multiple, rule.by_number) == (32, 1, 1, True)


def test_defaults_are_transformers() -> None:
    config = LlavaOnevisionConfig()
    family = make({"images": {}})
    assert [list(size) for size in family.settings.pinpoints] == config.image_grid_pinpoints
    assert family.settings.side == config.vision_config.image_size
    assert family.settings.patch_size == config.vision_config.patch_size
    assert config.vision_aspect_ratio == f"anyres_max_{family.settings.most_tiles}"


def copy_settings(checkpoint: Path, folder: Path) -> None:
    """A checkpoint's settings, with those of videos in a file of their own."""
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text((checkpoint / name).read_text())
    held = json.loads((checkpoint / "preprocessor_config.json").read_text())
    own = ("size", "image_mean", "image_std", "resample")
    (folder / VIDEO_FILE).write_text(json.dumps({name: held[name] for name in own}))


@pytest.mark.parametrize(
    ("file", "raw", "said"),
    [
        (
            "preprocessor_config.json",
            {"size": {"height": 58, "width": 58}},
            "multiple of the tiles'",
        ),
        ("preprocessor_config.json", {"image_grid_pinpoints": [[54, 108]]}, "image_grid_pinpoints"),
        ("preprocessor_config.json", {"image_grid_pinpoints": [[54, 100]]}, "no multiple"),
        ("preprocessor_config.json", {"image_grid_pinpoints": []}, "pinpoints"),
        ("preprocessor_config.json", {"image_mean": [1.5, 0, 0]}, "no colour to pad"),
        ("preprocessor_config.json", {"resample": 2}, "resample"),
        ("preprocessor_config.json", {"image_processor_type": "X"}, "image_processor_type"),
        ("config.json", {"vision_aspect_ratio": "pad"}, "vision_aspect_ratio is 'pad'"),
        (VIDEO_FILE, {"size": {"height": 60, "width": 60}}, "side is 60"),
        (VIDEO_FILE, {"fps": 2, "num_frames": 3}, "fps and num_frames"),
        (VIDEO_FILE, {"num_frames": 0}, "num_frames"),
        (VIDEO_FILE, {"video_processor_type": "X"}, "video_processor_type"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_honoured_are_refused(
    checkpoint: Path, tmp_path: Path, file: str, raw: dict[str, Any], said: str
) -> None:
    copy_settings(checkpoint, tmp_path)
    change_json(tmp_path / file, lambda data: data.update(raw))
    with pytest.raises(CheckpointError, match=said):
        LlavaOnevision.settings_from_checkpoint(tmp_path)


def test_frames_to_take_are_the_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    for raw, (frames, fps) in (({"num_frames": 8}, (8, 2.0)), ({"fps": 1.5}, (None, 1.5))):
        copy_settings(checkpoint, tmp_path)
        change_json(tmp_path / VIDEO_FILE, lambda data, raw=raw: data.update(raw))
        rule = make(LlavaOnevision.settings_from_checkpoint(tmp_path)).frame_rule
        assert (rule.frames, rule.fps) == (frames, fps)


@pytest.mark.parametrize(
    "raw",
    [{}, {"images": {"side": 0}}, {"images": {}, "sound": {}}, {"images": {"patch_size": 385}}],
)
def test_a_bundles_settings_are_checked(raw: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="preprocessing settings are wrong"):
        make(raw)
