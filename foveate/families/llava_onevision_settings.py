"""LLaVA-OneVision's settings of pictures and videos, and how they are read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from foveate.errors import BundleError, CheckpointError
from foveate.families.base import FrameRule
from foveate.families.pixels import image_section, video_section
from foveate.families.settings_file import read_json
from foveate.families.tiles import Side, TileSettings, tile_fields

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Length = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
FRAMES = 32
"""Frames of a video file where the checkpoint names no number."""
USUAL = tuple((384 * down, 384 * across) for down in range(1, 7) for across in range(1, 7))
"""The sizes of a picture's tiles together, where the checkpoint names none."""
CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
"""What a file that names neither stands for: the reference's defaults."""
ASPECT = re.compile(r"anyres_max_([1-9]\d{0,3})")
_Kind = TypeVar("_Kind", bound=msgspec.Struct)
NAMES = ("LlavaOnevisionImageProcessor", "LlavaOnevisionVideoProcessor")


class Settings(TileSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pictures become tiles, and tiles tokens.

    Attributes:
        patch_size: Side of a patch in pixels.
        pinpoints: The heights and widths that a picture's tiles may have together.
        most_tiles: How many tiles' worth of tokens a picture has at most, give or take a fifth.
    """

    patch_size: Side = 14
    pinpoints: Annotated[tuple[tuple[Length, Length], ...], msgspec.Meta(min_length=1)] = USUAL
    most_tiles: Count = 9

    def __post_init__(self) -> None:
        """Refuse tiles of parts, and a mean that is no colour to pad with."""
        TileSettings.__post_init__(self)
        if self.patch_size > self.side:
            raise ValueError(f"patch_size {self.patch_size} is over the tiles' side {self.side}")
        for down, across in self.pinpoints:
            if down % self.side or across % self.side:
                raise ValueError(
                    f"the pinpoint [{down}, {across}] is no multiple of the tiles' side {self.side}"
                )
        if not all(0 <= level < 256 for level in self.background):
            raise ValueError(
                f"image_mean {list(self.image_mean)} is no colour to pad pictures with"
            )

    @property
    def background(self) -> tuple[int, int, int]:
        """The mean colour as 8-bit levels, with which several pictures are padded to squares."""
        red, green, blue = (int(mean * 255) for mean in self.image_mean)
        return red, green, blue


class VideoSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many frames of a video file are taken.

    Attributes:
        num_frames: So many, where `fps` is None.
        fps: Frames for each second, instead.
    """

    num_frames: Count = FRAMES
    fps: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None

    def frame_rule(self) -> FrameRule:
        """Frames evenly apart by their number, any number of them."""
        frames = self.num_frames if self.fps is None else None
        fps = FrameRule().fps if self.fps is None else self.fps
        return FrameRule(fps, frames, least=1, multiple=1, by_number=True)


class _Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle's preprocessing, by what it is about."""

    images: Settings
    videos: VideoSettings = VideoSettings()


def read_preprocessing(preprocessing: Mapping[str, Any]) -> tuple[Settings, VideoSettings]:
    """Read a bundle's settings of pictures and of videos.

    Args:
        preprocessing: What `settings_from_checkpoint` gave.

    Raises:
        BundleError: Settings that are wrong.
    """
    try:
        read = msgspec.convert(dict(preprocessing), _Preprocessing)
    except msgspec.ValidationError as error:
        raise BundleError(
            f"The bundle's preprocessing settings are wrong ({error}); export it again."
        ) from error
    return read.images, read.videos


def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's settings of pictures and videos, as JSON types that `read_preprocessing` takes.

    What the processors say of pictures must be what config.json says of the model, which unpads them.

    Raises:
        CheckpointError: A file that is missing, or a setting (named) that cannot be honoured.
    """
    found, raw = image_section(folder)
    config = folder / "config.json"
    model = read_json(config)
    _check_type(found, raw, "image_processor_type")
    fields = {**CLIP, **tile_fields(found, raw)}
    images = _read(found, {**fields, **_model_fields(config, model), **_pinpoints(raw)}, Settings)
    if _read(config, _pinpoints(model), _Pinpoints).pinpoints != images.pinpoints:
        raise CheckpointError(
            f"{found}: image_grid_pinpoints are not those of {config}, by which the model puts tiles "
            "together; make them the same."
        )
    side = (model.get("vision_config") or {}).get("image_size", 384)
    if side != images.side:
        raise CheckpointError(
            f"{found}: size is {images.side}, and image_size of vision_config in {config} is {side}; "
            "make them the same."
        )
    return {
        "images": msgspec.to_builtins(images),
        "videos": msgspec.to_builtins(_videos(folder, images)),
    }


class _Pinpoints(msgspec.Struct, frozen=True):
    """The sizes of a picture's tiles together, as one file gives them."""

    pinpoints: tuple[tuple[Length, Length], ...] = USUAL


def _pinpoints(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The field of `Settings` that a file names, where it does."""
    given = raw.get("image_grid_pinpoints")
    return {} if given is None else {"pinpoints": given}


def _model_fields(config: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Settings` that config.json has."""
    aspect = model.get("vision_aspect_ratio") or "anyres_max_9"
    named = ASPECT.fullmatch(aspect) if isinstance(aspect, str) else None
    if named is None:
        raise CheckpointError(
            f"{config}: vision_aspect_ratio is {aspect!r}, and Foveate takes anyres_max_ and a number, "
            "such as anyres_max_9."
        )
    vision = model.get("vision_config") or {}
    return {"most_tiles": int(named[1]), "patch_size": vision.get("patch_size", 14)}


def _videos(folder: Path, images: Settings) -> VideoSettings:
    """What is said of videos, whose frames become tiles as pictures do."""
    found, raw = video_section(folder) or (folder, {})
    if raw.get("video_processor_type") is not None:
        _check_type(found, raw, "video_processor_type")
    fields = {**CLIP, **tile_fields(found, raw)}
    frames = _read(found, fields, TileSettings) if raw else images
    for name in TileSettings.__struct_fields__:
        if raw and getattr(frames, name) != getattr(images, name):
            raise CheckpointError(
                f"{found}: {name} is {getattr(frames, name)!r} for videos and "
                f"{getattr(images, name)!r} for pictures, which Foveate treats alike; set both to one."
            )
    if raw.get("fps") is not None and raw.get("num_frames") is not None:
        raise CheckpointError(f"{found}: fps and num_frames are both given; remove one of them.")
    given = {key: raw[key] for key in ("num_frames", "fps") if raw.get(key) is not None}
    return _read(found, given, VideoSettings)


def _check_type(found: Path, raw: Mapping[str, Any], name: str) -> None:
    """CheckpointError for settings of another processor."""
    told = raw.get(name) or raw.get("feature_extractor_type")
    if told is not None and not str(told).startswith(NAMES):
        raise CheckpointError(f"{found}: {name} {told!r} is not {NAMES[0]}.")


def _read(found: Path, values: Mapping[str, Any], kind: type[_Kind]) -> _Kind:
    """Values of a file as settings."""
    try:
        return msgspec.convert(dict(values), kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{found}: the settings are wrong ({error}).") from error
