"""Qwen2-VL's image settings: how they are read, and what size they give a picture."""

import math
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import replace

from foveate.errors import BundleError, CheckpointError, ImageError, LimitError
from foveate.families.base import PixelLimits
from foveate.families.pixels import image_section

_Count = Annotated[int, msgspec.Meta(ge=1)]
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

    patch_size: _Count = 14
    merge_size: _Count = 2
    temporal_patch_size: _Count = 2
    min_pixels: _Count = 56 * 56
    max_pixels: _Count = 28 * 28 * 1280
    image_mean: _Channels = (0.48145466, 0.4578275, 0.40821073)
    image_std: _Channels = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
    resample: Literal["bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        """Refuse numbers that would give no finite pixels."""
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is over max_pixels {self.max_pixels}")
        if not all(map(math.isfinite, (*self.image_mean, *self.image_std, self.rescale_factor))):
            raise ValueError("image_mean, image_std and rescale_factor must be finite")
        if min(self.image_std) <= 0:
            raise ValueError("image_std must be above zero")


class _Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle's preprocessing, by what it is about."""

    images: Settings


def read_preprocessing(preprocessing: Mapping[str, Any]) -> Settings:
    """Read a bundle's settings.

    Args:
        preprocessing: {"images": what `settings_from_checkpoint` gave}.

    Raises:
        BundleError: Settings that are wrong.
    """
    try:
        return msgspec.convert(dict(preprocessing), _Preprocessing).images
    except msgspec.ValidationError as error:
        raise BundleError(
            f"The bundle's preprocessing settings are wrong ({error}); export it again."
        ) from error


def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's image settings, as JSON types that `Settings` takes.

    processor_config.json goes before preprocessor_config.json where it has an image_processor part.

    Raises:
        CheckpointError: No such file, or a setting (named) that cannot be honoured.
    """
    found, raw = image_section(folder)
    kind = raw.get("image_processor_type") or raw.get("feature_extractor_type")
    if kind is not None and not str(kind).startswith("Qwen2VLImageProcessor"):
        raise CheckpointError(
            f"{found}: image_processor_type {kind!r} is not Qwen2VLImageProcessor."
        )
    if raw.get("resample") not in (None, _BICUBIC, "bicubic"):
        raise CheckpointError(
            f"{found}: resample {raw['resample']!r} is not bicubic ({_BICUBIC}), "
            "the only filter that Foveate has for this family."
        )
    known = {key: raw.get(key) for key in Settings.__struct_fields__ if key != "resample"}
    known |= _pixel_limits(found, raw)
    values = {key: value for key, value in known.items() if value is not None}
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{found}: the image settings are wrong ({error}).") from error
    return dict(msgspec.json.decode(msgspec.json.encode(settings)))


def limited_settings(settings: Settings, limits: PixelLimits) -> Settings:
    """Settings with the limits of a request in place of the checkpoint's.

    Where max_pixels alone is given, below the checkpoint's min_pixels, no picture is enlarged.

    Raises:
        LimitError: A limit that is no whole number from 1 on, or limits that leave no size.
    """
    wanted: dict[str, int] = {}
    for name in ("min_pixels", "max_pixels"):
        value = getattr(limits, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise LimitError(f"{name} is {value!r}; give a whole number of pixels from 1 on.")
        wanted[name] = int(value)
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
