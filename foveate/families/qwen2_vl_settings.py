"""Qwen2-VL's settings of pictures and videos: how they are read, and what size they give."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec.structs import replace

from foveate.errors import BundleError, CheckpointError, ImageError, LimitError
from foveate.families.base import FrameRule, PixelLimits
from foveate.families.pixels import image_section, video_section

_Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_Channels = tuple[float, float, float]

_MAX_ASPECT = 200
_BICUBIC = 3


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pictures become patches. Defaults are those of the reference image processor.

    Attributes:
        patch_size: Side of a patch in pixels.
        merge_size: Patches along each side of a visual token.
        temporal_patch_size: Frames in a patch; a still picture is repeated to fill them.
        min_pixels: Smaller pictures are enlarged to about this area.
        max_pixels: Larger pictures are shrunk to at most this area.
        image_mean: For red, green, blue, after rescaling.
        image_std: For red, green, blue, after rescaling.
        rescale_factor: Multiplies the 8-bit levels.
        resample: The resize filter.
    """

    patch_size: _Side = 14
    merge_size: _Side = 2
    temporal_patch_size: _Side = 2
    min_pixels: _Count = 56 * 56
    max_pixels: _Count = 28 * 28 * 1280
    image_mean: _Channels = (0.48145466, 0.4578275, 0.40821073)
    image_std: _Channels = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
    resample: Literal["bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        """Refuse limits that cannot both hold, and numbers that would give no finite pixels."""
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is over max_pixels {self.max_pixels}")
        self._check_levels()

    def _check_levels(self) -> None:
        """Refuse numbers that would give no finite pixels."""
        if not all(map(math.isfinite, (*self.image_mean, *self.image_std, self.rescale_factor))):
            raise ValueError("image_mean, image_std and rescale_factor must be finite")
        if min(self.image_std) <= 0:
            raise ValueError("image_std must be above zero")


class VideoSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How frames of videos become patches, and how many are taken. Defaults are the reference's.

    Attributes:
        fps: Frames to take of a file for each second; None is 2.
        num_frames: How many to take of a file, instead.
        min_frames: The fewest to take by a rate, where there are so many.
        max_frames: The most.
        cap_pixels_per_frame: Whether a video's frames share `max_video_tokens`.
        max_video_tokens: The context length of which nine tenths are a video's.
    """

    min_pixels: _Count = 128 * 28 * 28
    max_pixels: _Count = 768 * 28 * 28
    fps: Annotated[float, msgspec.Meta(gt=0)] | None = None
    num_frames: _Count | None = None
    min_frames: _Count = 4
    max_frames: _Count = 768
    cap_pixels_per_frame: bool = False
    max_video_tokens: _Count = 128_000

    def __post_init__(self) -> None:
        """Refuse two ways of counting frames at once, and numbers that would give no finite pixels.

        A limit that is over the other is no fault: one may be the checkpoint's and one the default, and
        the reference then lets the upper one win.
        """
        self._check_levels()
        if self.fps is not None and self.num_frames is not None:
            raise ValueError("fps and num_frames are both given")
        if self.fps is not None and not math.isfinite(self.fps):
            raise ValueError("fps must be finite")

    def frame_rule(self) -> FrameRule:
        """How many frames to take of a file."""
        deep = self.temporal_patch_size
        even = None if self.num_frames is None else max(1, round(self.num_frames / deep) * deep)
        fps = FrameRule().fps if self.fps is None else self.fps
        return FrameRule(fps, even, self.min_frames, self.max_frames, deep)

    def shared(self, frames: int) -> "VideoSettings":
        """The limits of each frame of a video of so many."""
        if not self.cap_pixels_per_frame:
            return self
        area = int(self.max_video_tokens * (self.patch_size * self.merge_size) ** 2 * 0.9)
        share = area * self.temporal_patch_size // max(frames, 1)
        most = max(min(self.max_pixels, share), int(self.min_pixels * 1.05))
        return msgspec.structs.replace(self, max_pixels=most)


_ALIKE = (
    *("patch_size", "merge_size", "temporal_patch_size", "resample"),
    *("rescale_factor", "image_mean", "image_std"),
)
"""What the vision graph does to pictures and frames in the same way."""


class _Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle's preprocessing, by what it is about."""

    images: Settings
    videos: VideoSettings | None = None

    def __post_init__(self) -> None:
        """Refuse videos that are not treated as pictures are."""
        other = None if self.videos is None else _unlike(self.images, self.videos)
        if other is not None:
            raise ValueError(f"{other} of videos is not that of images")


_Read = TypeVar("_Read", bound=Settings)


def read_preprocessing(preprocessing: Mapping[str, Any]) -> Settings:
    """Read a bundle's settings of pictures.

    Args:
        preprocessing: {"images": what `settings_from_checkpoint` gave, "videos": what
            `video_settings_from_checkpoint` gave}.

    Raises:
        BundleError: Settings that are wrong.
    """
    return _preprocessing(preprocessing).images


def read_video_settings(preprocessing: Mapping[str, Any]) -> VideoSettings:
    """Read a bundle's settings of videos; where it has none, frames are treated as pictures.

    Args:
        preprocessing: As `read_preprocessing` takes it.

    Raises:
        BundleError: Settings that are wrong.
    """
    read = _preprocessing(preprocessing)
    return (
        VideoSettings(**msgspec.structs.asdict(read.images)) if read.videos is None else read.videos
    )


def _preprocessing(preprocessing: Mapping[str, Any]) -> _Preprocessing:
    """Both, checked."""
    try:
        return msgspec.convert(dict(preprocessing), _Preprocessing)
    except msgspec.ValidationError as error:
        raise BundleError(
            f"The bundle's preprocessing settings are wrong ({error}); export it again."
        ) from error


def _unlike(images: Settings, videos: Settings) -> str | None:
    """A setting that pictures and videos must share and do not."""
    return next((key for key in _ALIKE if getattr(images, key) != getattr(videos, key)), None)


def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's image settings, as JSON types that `Settings` takes.

    processor_config.json goes before preprocessor_config.json where it has an image_processor part.

    Raises:
        CheckpointError: No such file, or a setting (named) that cannot be honoured.
    """
    found, raw = image_section(folder)
    return _plain(_read(found, raw, Settings, "ImageProcessor"))


def video_settings_from_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's video settings, as JSON types that `VideoSettings` takes.

    They are where transformers looks for them: the video_processor part of processor_config.json, or
    video_preprocessor_config.json, or preprocessor_config.json; without any, its defaults.

    Raises:
        CheckpointError: A setting (named) that cannot be honoured, or that is not that of pictures
            where both must be treated alike.
    """
    found, raw = video_section(folder) or (folder, {})
    moving = raw.get("video_processor_type") is not None
    videos = _read(found, raw, VideoSettings, "VideoProcessor" if moving else "ImageProcessor")
    images = _read(*image_section(folder), Settings, "ImageProcessor")
    other = _unlike(images, videos)
    if other is not None:
        raise CheckpointError(
            f"{found}: {other} is {getattr(videos, other)!r} for videos and "
            f"{getattr(images, other)!r} for pictures, which Foveate treats alike; set both to one."
        )
    return _plain(videos)


def _read(found: Path, raw: Mapping[str, Any], kind: type[_Read], processor: str) -> _Read:
    """Settings of a section of the file `found`, of a processor of transformers called so."""
    name = "video_processor_type" if processor.startswith("Video") else "image_processor_type"
    told = raw.get(name) or raw.get("feature_extractor_type")
    if told is not None and not str(told).startswith(f"Qwen2VL{processor}"):
        raise CheckpointError(f"{found}: {name} {told!r} is not Qwen2VL{processor}.")
    if raw.get("resample") not in (None, _BICUBIC, "bicubic"):
        raise CheckpointError(
            f"{found}: resample {raw['resample']!r} is not bicubic ({_BICUBIC}), "
            "the only filter that Foveate has for this family."
        )
    known = {key: raw.get(key) for key in kind.__struct_fields__ if key != "resample"}
    known |= _pixel_limits(found, raw)
    values = {key: value for key, value in known.items() if value is not None}
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        about = "video" if kind is VideoSettings else "image"
        raise CheckpointError(f"{found}: the {about} settings are wrong ({error}).") from error


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON types."""
    return dict(msgspec.json.decode(msgspec.json.encode(settings)))


def limited_settings(settings: _Read, limits: PixelLimits) -> _Read:
    """Settings with the limits of a request in place of the checkpoint's.

    Where max_pixels alone is given, below the checkpoint's min_pixels, no picture is enlarged.

    Raises:
        LimitError: Limits that leave no size.
    """
    wanted = {name: value for name, value in asdict(limits).items() if value is not None}
    most = wanted.get("max_pixels", settings.max_pixels)
    if most < settings.min_pixels:
        wanted.setdefault("min_pixels", 1)
    least = wanted.get("min_pixels", settings.min_pixels)
    if least > most:
        raise LimitError(
            f"min_pixels is {least} and max_pixels is {most}; give both, and max_pixels the larger."
        )
    return replace(settings, **wanted)


def fitted_size(height: int, width: int, settings: Settings, number: int = 1) -> tuple[int, int]:
    """Height and width in pixels after resizing: whole tokens, area within the limits.

    Halves round to even, and the limits are applied to the rounded area, as the reference does.

    Raises:
        ImageError: A side over 200 times the other; the message calls the picture `number`.
    """
    aspect = max(height, width) / min(height, width)
    if aspect > _MAX_ASPECT:
        raise ImageError(
            f"Picture {number} is {width} x {height} pixels, an aspect ratio of {aspect:.0f}, and "
            f"Qwen2-VL takes {_MAX_ASPECT} at most; crop or pad it."
        )
    unit = settings.patch_size * settings.merge_size
    fitted = (round(height / unit) * unit, round(width / unit) * unit)
    area = fitted[0] * fitted[1]
    if area > settings.max_pixels:
        shrink = math.sqrt((height * width) / settings.max_pixels)
        fitted = (
            max(unit, math.floor(height / shrink / unit) * unit),
            max(unit, math.floor(width / shrink / unit) * unit),
        )
    elif area < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (height * width))
        fitted = (math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit)
    return fitted


def _pixel_limits(found: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The area limits of both spellings; a limit of its own goes before the one inside `size`."""
    size = raw.get("size")
    limits: dict[str, Any] = {}
    for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        limit = raw.get(key)
        if limit is None and size is not None:
            if not isinstance(size, dict) or edge not in size:
                raise CheckpointError(
                    f"{found}: size {size!r} gives no {edge}, and there is no {key} beside it."
                )
            limit = size[edge]
        limits[key] = limit
    return limits
