"""Limits of videos: where transformers looks for them, and the sizes that follow.

Its video processor needs torchvision; the files are looked for by its own code all the same, and sizes
are computed by its image processor's `smart_resize`, which the video processor has a copy of.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.video_processing_utils import VideoProcessorMixin

from foveate.errors import BundleError, CheckpointError
from foveate.families.base import Video
from foveate.families.qwen2_vl import Qwen2VL
from foveate.families.qwen2_vl_settings import (
    VideoSettings,
    read_video_settings,
    settings_from_checkpoint,
    video_settings_from_checkpoint,
)
from tests.families.reference import TEMPLATE, control_ids

SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}
"""transformers' default."""
IMAGE = {"image_processor_type": "Qwen2VLImageProcessor"}
LIMITS = {"min_pixels": 5 * 784, "max_pixels": 50 * 784}
OTHER = {"size": {"shortest_edge": 4 * 784, "longest_edge": 24 * 784}}
KIND = {"video_processor_type": "Qwen2VLVideoProcessor"}

PLACES: dict[str, dict[str, Any]] = {
    "the old file": {"preprocessor_config.json": {**IMAGE, **LIMITS}},
    "the old file without limits": {"preprocessor_config.json": IMAGE},
    "one limit": {"preprocessor_config.json": {**IMAGE, "max_pixels": 30 * 784}},
    "a file of its own": {
        "preprocessor_config.json": {**IMAGE, **LIMITS},
        "video_preprocessor_config.json": {**KIND, **OTHER},
    },
    "a file of its own without limits": {
        "preprocessor_config.json": {**IMAGE, **LIMITS},
        "video_preprocessor_config.json": KIND,
    },
    "a limit beside size": {
        "preprocessor_config.json": IMAGE,
        "video_preprocessor_config.json": {**KIND, **OTHER, "min_pixels": 7 * 784},
    },
    "the whole processor": {
        "processor_config.json": {"image_processor": IMAGE, "video_processor": {**KIND, **OTHER}},
        "video_preprocessor_config.json": {**KIND, **LIMITS},
        "preprocessor_config.json": {**IMAGE, **LIMITS},
    },
    "the whole processor without one": {
        "processor_config.json": {"image_processor": IMAGE},
        "video_preprocessor_config.json": {**KIND, **OTHER},
        "preprocessor_config.json": {**IMAGE, **LIMITS},
    },
}


def write(folder: Path, files: dict[str, Any]) -> Path:
    """A checkpoint's files of settings."""
    for name, held in files.items():
        (folder / name).write_text(json.dumps(held))
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_limits_are_read_where_transformers_reads_them(
    tmp_path: Path, tokenizer: Any, place: str
) -> None:
    write(tmp_path, PLACES[place])
    raw, _ = VideoProcessorMixin.get_video_processor_dict(tmp_path)
    size = dict(raw.get("size") or SIZE)
    least = raw.get("min_pixels") or size["shortest_edge"]
    most = raw.get("max_pixels") or size["longest_edge"]
    settings = video_settings_from_checkpoint(tmp_path)
    assert (settings["min_pixels"], settings["max_pixels"]) == (least, most)

    found = {"images": settings_from_checkpoint(tmp_path), "videos": settings}
    family = Qwen2VL(found, tokenizer, TEMPLATE, control_ids(tokenizer))
    for height, width in ((280, 196), (30, 41), (1000, 1500), (28, 600)):
        fitted = smart_resize(height, width, 28, least, most)
        film = Video((Image.new("RGB", (width, height)),) * 4)
        visual = family.prepare([film])
        assert visual.grids == ((2, fitted[0] // 28, fitted[1] // 28),)
        assert family.plan([film]).tokens == visual.tokens


def test_pictures_keep_their_own_limits(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, PLACES["a file of its own"])
    settings = Qwen2VL.settings_from_checkpoint(tmp_path)
    family = Qwen2VL(json.loads(json.dumps(settings)), tokenizer, TEMPLATE, control_ids(tokenizer))
    frame = Image.new("RGB", (280, 196))
    assert family.prepare([frame]).grids == ((1, *_grid(196, 280, 5, 50)),)
    assert family.prepare([Video((frame,) * 4)]).grids == ((2, *_grid(196, 280, 4, 24)),)


def _grid(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """Rows and columns of tokens by the reference, limits in tokens."""
    fitted = smart_resize(height, width, 28, least * 784, most * 784)
    return fitted[0] // 28, fitted[1] // 28


@pytest.mark.parametrize(("frames", "most"), [(4, 100), (10, 100), (40, 90 * 2 // 40), (768, 0)])
def test_frames_share_a_videos_tokens(frames: int, most: int) -> None:
    """cap_pixels_per_frame: a share of nine tenths of the context, not under 1.05 times the least."""
    settings = VideoSettings(
        min_pixels=4 * 784, max_pixels=100 * 784, cap_pixels_per_frame=True, max_video_tokens=1000
    )
    share = 900 * 784 * 2 // frames
    expected = max(min(100 * 784, share), int(4 * 784 * 1.05))
    assert settings.shared(frames).max_pixels == expected
    assert VideoSettings().shared(frames) == VideoSettings()


def test_how_many_frames_are_taken(tmp_path: Path) -> None:
    own = {**KIND, "fps": 1, "min_frames": 6, "max_frames": 10, "do_sample_frames": True}
    write(tmp_path, {"preprocessor_config.json": IMAGE, "video_preprocessor_config.json": own})
    videos = {"images": {}, "videos": video_settings_from_checkpoint(tmp_path)}
    rule = read_video_settings(videos).frame_rule()
    assert (rule.fps, rule.least, rule.most, rule.multiple, rule.frames) == (1, 6, 10, 2, None)
    assert VideoSettings(num_frames=7).frame_rule().frames == 8
    assert read_video_settings({"images": {"max_pixels": 9999}}).max_pixels == 9999


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"patch_size": 16}, "patch_size is 16 for videos and 14 for pictures"),
        ({"image_mean": [0.5] * 3}, "image_mean"),
        ({"temporal_patch_size": 1}, "temporal_patch_size"),
        ({"do_resize": False}, "do_resize"),
        ({"resample": 2}, "resample"),
        ({"size": {"height": 9, "width": 9}}, "shortest_edge"),
        ({"fps": 0}, "fps"),
        ({"fps": 1, "num_frames": 4}, "num_frames"),
        ({"max_frames": 0}, "max_frames"),
        ({"video_processor_type": "Qwen3VLVideoProcessor"}, "video_processor_type"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused(
    tmp_path: Path, own: dict[str, Any], words: str
) -> None:
    files = {"preprocessor_config.json": IMAGE, "video_preprocessor_config.json": {**KIND, **own}}
    write(tmp_path, files)
    with pytest.raises(CheckpointError, match=words) as caught:
        video_settings_from_checkpoint(tmp_path)
    assert "video_preprocessor_config.json" in str(caught.value)


@pytest.mark.parametrize(
    "videos", [{"image_std": [0.1] * 3}, {"fps": -1}, {"frames": 1}, {"min_frames": 0}, 1], ids=str
)
def test_a_bundles_settings_are_checked(videos: Any) -> None:
    with pytest.raises(BundleError, match="export it again"):
        read_video_settings({"images": {}, "videos": videos})
