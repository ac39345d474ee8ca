"""Pictures to patches, against transformers' PIL processor. Tolerance everywhere: none."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import PIL
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from foveate.errors import BundleError, CheckpointError, ImageError
from foveate.families.pixels import resize_bicubic
from foveate.families.qwen2_vl import Qwen2VL
from foveate.families.qwen2_vl_settings import Settings, fitted_size, settings_from_checkpoint
from tests.families.reference import TEMPLATE

PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])
OLDEST, BEYOND = (11, 0), (14, 0)
GOLDEN = json.loads((Path(__file__).parent / "golden_qwen2_vl.json").read_text())

same_pass_order = pytest.mark.skipif(
    PILLOW < (13, 0),
    reason="before 13.0 Pillow itself, and so transformers, resizes in another order",
)

SIZES = [
    *[(side, side) for side in (1, 3, 14, 27, 28, 42, 56, 70, 98, 126, 154)],
    *[(70, 42), (42, 70), (98, 126), (126, 98), (70, 98)],
    *[(480, 640), (640, 480), (515, 500), (500, 515), (768, 1024), (301, 199)],
    *[(200, 1), (1, 200), (1000, 5), (5, 1000), (30, 2000), (2000, 30)],
    *[(1100, 1200), (1001, 1003), (2500, 700), (700, 2500), (1002, 1002)],
]
MODES = ["RGB", "RGBA", "LA", "PA", "L", "1", "P", "I;16", "I", "F", "CMYK", "YCbCr", "HSV", "RGBX"]
KEYED = {"P": 3, "L": 100, "RGB": (10, 20, 30)}


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """A picture of random levels in any mode."""
    random = np.random.default_rng(height * 10_007 + width)
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(random.integers(0, 700, (height, width)).astype(dtype))
    levels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode in ("RGBA", "LA", "PA"):
        return Image.fromarray(levels).convert(mode)
    rgb = Image.fromarray(levels[..., :3].copy())
    return rgb.quantize(32) if mode == "P" else rgb.convert(mode)


def assert_same(family: Qwen2VL, processor: Any, pictures: list[Image.Image]) -> None:
    """Every input, grid and place as the reference has it; inputs to the bit."""
    ours = family.prepare(pictures)
    pixels, places = (
        np.concatenate([row for call in ours.calls for row in call.inputs[name]])
        for name in ("pixel_values", "position_ids")
    )
    theirs = processor(images=pictures, return_tensors="pt")
    grid = theirs["image_grid_thw"]
    merge, patch = family.settings.merge_size, family.settings.patch_size
    assert (pixels.dtype, places.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(pixels, theirs["pixel_values"].numpy())
    np.testing.assert_array_equal(places, get_vision_position_ids(grid, merge).numpy())
    lengths = [len(row) for call in ours.calls for row in call.inputs["pixel_values"]]
    np.testing.assert_array_equal(np.cumsum([0, *lengths]), get_vision_cu_seqlens(grid).numpy())
    assert ours.grids == tuple((t, h // merge, w // merge) for t, h, w in grid.tolist())
    assert ours.tokens == int(grid.prod(-1).sum()) // merge**2
    assert ours.tokens == sum(call.tokens for call in ours.calls)
    assert ours.moving == (False,) * len(pictures)
    assert ours.candidates.all() and ours.candidates.shape == (ours.tokens,)
    sizes = [(h * patch, w * patch) for _, h, w in grid.tolist()]
    shown = [(number, *size) for number, size in enumerate(sizes)]
    pixels = [
        (number, top, left, height, width)
        for number, height, width in shown
        for top in range(0, height, merge * patch)
        for left in range(0, width, merge * patch)
    ]
    assert ours.picture.tolist() == [number for number, *_ in pixels]
    boxes = [
        (left / width, top / height, (left + merge * patch) / width, (top + merge * patch) / height)
        for _, top, left, height, width in pixels
    ]
    np.testing.assert_allclose(ours.boxes, np.array(boxes), rtol=1e-6)
    assert (ours.picture.dtype, ours.boxes.dtype) == (np.int64, np.float32)


@same_pass_order
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_of_every_shape_are_the_references(family: Qwen2VL, size: tuple[int, int]) -> None:
    assert_same(family, Qwen2VLImageProcessorPil(), [noise(*size)])


@same_pass_order
@pytest.mark.parametrize("mode", MODES)
def test_pixels_of_every_mode_are_the_references(family: Qwen2VL, mode: str) -> None:
    picture = noise(67, 91, mode)
    assert picture.mode == mode
    assert_same(family, Qwen2VLImageProcessorPil(), [picture])


@same_pass_order
@pytest.mark.parametrize("mode", KEYED)
def test_a_transparent_colour_is_laid_on_white_as_the_reference_does(
    family: Qwen2VL, mode: str
) -> None:
    picture = noise(67, 91, mode)
    plain = family.prepare([picture]).calls[0].inputs["pixel_values"]
    picture.putpixel((0, 0), KEYED[mode])
    picture.info["transparency"] = KEYED[mode]
    assert_same(family, Qwen2VLImageProcessorPil(), [picture])
    assert not np.array_equal(plain, family.prepare([picture]).calls[0].inputs["pixel_values"])


@same_pass_order
def test_several_unequal_pictures_follow_one_another(family: Qwen2VL) -> None:
    assert_same(
        family,
        Qwen2VLImageProcessorPil(),
        [noise(100, 60), noise(30, 200, "L"), noise(84, 84, "P")],
    )


@same_pass_order
def test_other_settings_are_honoured(tokenizer: Any, family: Qwen2VL) -> None:
    raw: dict[str, Any] = {
        "patch_size": 7,
        "merge_size": 3,
        "temporal_patch_size": 4,
        "min_pixels": 21 * 21 * 4,
        "max_pixels": 21 * 21 * 30,
        "image_mean": [0.5, 0.1, 0.0],
        "image_std": [0.5, 1.5, 0.25],
        "rescale_factor": 1 / 127.5,
    }
    other = Qwen2VL({"images": raw}, tokenizer, TEMPLATE, family._layout.tokens)
    assert_same(other, Qwen2VLImageProcessorPil(**raw), [noise(200, 150), noise(11, 13)])


@same_pass_order
def test_pictures_of_one_size_that_follow_each_other_share_a_run(family: Qwen2VL) -> None:
    pictures = [noise(56, 84), noise(56, 84), noise(84, 56), noise(84, 84), noise(56, 84)]
    assert_same(family, Qwen2VLImageProcessorPil(), pictures)
    calls = family.prepare(pictures).calls
    # Six tokens lie as 2 x 3 or as 3 x 2.
    assert [len(call.inputs["pixel_values"]) for call in calls] == [3, 1, 1]
    assert [call.tokens for call in calls] == [18, 9, 6]
    assert [part.tokens for part in calls[0].parts(12)] == [12, 6]
    assert [part.tokens for part in calls[0].parts(1)] == [6, 6, 6]
    for most in (1, 12, 99):
        parts = [part.inputs["pixel_values"] for part in calls[0].parts(most)]
        np.testing.assert_array_equal(np.concatenate(parts), calls[0].inputs["pixel_values"])


def test_no_pictures_take_no_run(family: Qwen2VL) -> None:
    visual = family.prepare([])
    assert (visual.tokens, visual.calls, visual.grids, visual.moving) == (0, (), (), ())
    assert (visual.picture.shape, visual.boxes.shape) == ((0,), (0, 4))


def test_fitted_sizes_are_the_references() -> None:
    random = np.random.default_rng(5)
    half_units = [(14 * a, 14 * b) for a in range(1, 40) for b in range(1, 40)]
    drawn = [(int(h), int(w)) for h, w in np.exp(random.uniform(0, 8.5, (3000, 2))).astype(int)]
    compared = 0
    for height, width in half_units + drawn:
        if max(height, width) <= 200 * min(height, width):
            assert fitted_size(height, width, Settings()) == smart_resize(
                height, width, 28, 56 * 56, 28 * 28 * 1280
            )
            compared += 1
    assert compared > 4000


@pytest.mark.parametrize("size", [(4000, 1), (1, 4000), (2010, 10), (201, 1)], ids=str)
def test_a_strip_is_refused(family: Qwen2VL, size: tuple[int, int]) -> None:
    ratio = max(size) // min(size)
    with pytest.raises(ImageError, match=rf"^Picture 2 .*aspect ratio of {ratio}\b.*crop or pad"):
        family.prepare([noise(28, 28), Image.new("RGB", size)])


def test_a_mode_that_has_no_rgb_is_refused(family: Qwen2VL) -> None:
    with pytest.raises(ImageError, match="Picture 1 has mode La"):
        family.prepare([noise(28, 28, "LA").convert("La")])


def test_pillow_is_of_the_range_that_was_compared() -> None:
    """Pixels were the same on 11.0, 11.3, 12.3 and 13.0; on a newer major, compare again."""
    assert OLDEST <= PILLOW < BEYOND


@same_pass_order
def test_the_pass_order_written_here_is_that_of_pillow_13() -> None:
    for height, width, *size in [
        *[(500, 500, 252, 504), (500, 500, 504, 252), (100, 100, 80, 90), (100, 100, 79, 90)],
        *[(100, 100, 81, 90), (64, 64, 28, 128), (64, 64, 128, 28), (3000, 30, 300, 28)],
        *[(600, 57, 56, 56), (300, 400, 112, 140), (80, 80, 80, 40), (80, 80, 40, 80)],
    ]:
        picture = noise(height, width)
        ours = resize_bicubic(picture, *size)
        theirs = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        assert ours.tobytes() == theirs.tobytes(), (height, width, size)


@pytest.mark.parametrize("shape", GOLDEN, ids=str)
def test_pixels_are_the_same_on_every_pillow(family: Qwen2VL, shape: str) -> None:
    """Written down with 13.0. Shapes include those where 12.3's own resize is up to 25 levels off."""
    height, width = map(int, shape.split("x"))
    rows, columns, channels = np.ogrid[:height, :width, :3]
    levels = (rows * rows * 7 + columns * 31 + rows * columns + channels * 85) % 256
    visual = family.prepare([Image.fromarray(levels.astype(np.uint8))])
    digest = hashlib.sha256(visual.calls[0].inputs["pixel_values"].tobytes()).hexdigest()
    _, rows, columns = visual.grids[0]
    assert ([28 * rows, 28 * columns], digest) == (GOLDEN[shape]["size"], GOLDEN[shape]["sha256"])


DEFAULTS: dict[str, Any] = json.loads(msgspec.json.encode(Settings()))
SAVED: dict[str, Any] = {"min_pixels": 28 * 28 * 6, "max_pixels": 28 * 28 * 40}


@pytest.mark.parametrize(
    "raw",
    [
        {},
        SAVED,
        {"size": {"shortest_edge": 28 * 28 * 6, "longest_edge": 28 * 28 * 40}},
        {"size": {"shortest_edge": 1, "longest_edge": 2}, **SAVED},
        {"size": {"min_pixels": 1, "max_pixels": 2}, **SAVED},
        {
            "resample": 3,
            "do_resize": True,
            "do_pad": None,
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.3, 0.4], "min_pixels": None},
    ],
    ids=str,
)
def test_settings_read_are_those_the_reference_uses(
    tmp_path: Path, tokenizer: Any, family: Qwen2VL, raw: dict[str, Any]
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw))
    found = settings_from_checkpoint(tmp_path)
    settings = msgspec.convert(found, Settings)
    processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    for ours, theirs in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        assert getattr(settings, ours) == processor.size[theirs]
    other = Qwen2VL({"images": found}, tokenizer, TEMPLATE, family._layout.tokens)
    if PILLOW >= (13, 0):
        assert_same(other, processor, [noise(300, 400), noise(31, 29)])


def test_settings_that_transformers_saved_are_read(tmp_path: Path) -> None:
    processor = Qwen2VLImageProcessorPil(**SAVED, image_std=[0.2, 0.3, 0.4])
    processor.save_pretrained(tmp_path)
    assert settings_from_checkpoint(tmp_path) == {**DEFAULTS, **SAVED, "image_std": [0.2, 0.3, 0.4]}


def test_a_whole_processors_settings_go_before_those_of_the_older_file(tmp_path: Path) -> None:
    saved = {"image_processor": Qwen2VLImageProcessorPil(**SAVED).to_dict(), "processor_class": "X"}
    (tmp_path / "processor_config.json").write_text(json.dumps(saved))
    (tmp_path / "preprocessor_config.json").write_text('{"min_pixels": 1}')
    assert settings_from_checkpoint(tmp_path) == {**DEFAULTS, **SAVED}
    (tmp_path / "processor_config.json").write_text('{"processor_class": "X"}')
    assert settings_from_checkpoint(tmp_path)["min_pixels"] == 1


def test_settings_are_json_and_come_back_from_it(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    settings = settings_from_checkpoint(tmp_path)
    kept = json.loads(json.dumps(settings))
    assert kept == settings
    assert msgspec.convert(kept, Settings) == Settings()


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_normalize": False}, "do_normalize"),
        ({"do_convert_rgb": False}, "do_convert_rgb"),
        ({"resample": 2}, "resample"),
        ({"size": {"height": 224, "width": 224}}, "shortest_edge"),
        ({"size": 224}, "shortest_edge"),
        ({"size": {"shortest_edge": 3136}}, "longest_edge"),
        ({"size": {"min_pixels": 1, "max_pixels": 2}}, "shortest_edge"),
        ({"patch_size": 0}, "patch_size"),
        ({"patch_size": "14"}, "patch_size"),
        ({"image_mean": 0.5}, "image_mean"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"min_pixels": 5000, "max_pixels": 4000}, "min_pixels"),
        ({"rescale_factor": float("inf")}, "rescale_factor"),
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_honoured_are_refused(
    tmp_path: Path, raw: dict[str, Any], key: str
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=re.escape(key)):
        settings_from_checkpoint(tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[]", "\x80"], ids=str)
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json"):
        settings_from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "raw",
    [{}, {"images": {}, "audio": {}}, {"images": 1}, {"images": {}, "videos": {"patch_size": 16}}],
    ids=str,
)
def test_a_bundles_preprocessing_is_of_pictures_and_videos(
    tokenizer: Any, raw: dict[str, Any]
) -> None:
    with pytest.raises(BundleError, match="preprocessing settings are wrong"):
        Qwen2VL(raw, tokenizer, "", {"image": 5, "vision_end": 4, "eos": 2})


@pytest.mark.parametrize(
    ("raw", "key"),
    [({"patch_size": -1}, "patch_size"), ({"crop": 1}, "crop"), ({"resample": "box"}, "resample")],
)
def test_a_bundles_settings_are_checked(tokenizer: Any, raw: dict[str, Any], key: str) -> None:
    with pytest.raises(BundleError, match=key):
        Qwen2VL({"images": raw}, tokenizer, "", {"image": 5, "vision_end": 4, "eos": 2})
