"""VILA1.5's settings of pictures and videos, from the folders that its checkpoints are made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from foveate.errors import BundleError, CheckpointError
from foveate.families.pixels import image_section
from foveate.families.settings_file import read_json
from foveate.families.tiles import Side, TileSettings, tile_fields

CONFIG_FILE = "config.json"
LANGUAGE, TOWER, PROJECTOR = "llm", "vision_tower", "mm_projector"
"""The folders of a checkpoint's parts."""
FRAMES = 8
"""Frames of a video where the checkpoint does not say."""
ORDERS: Mapping[str, Literal["columns", "rows"]] = {
    "mlp_downsample": "columns",
    "mlp_downsample_2x2_fix": "rows",
}
"""Kinds of projectors, and whether the tokens of a picture come column by column or row by row."""


class PictureSettings(TileSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pictures become what the vision tower takes, and where the tokens that come of it stand.

    Attributes:
        patch_size: Side of a patch in pixels; pixels beyond the last whole patch are not seen.
        order: Whether a picture's tokens come column by column or row by row.
    """

    patch_size: Side = 14
    order: Literal["columns", "rows"] = "columns"

    def __post_init__(self) -> None:
        """Refuse pictures smaller than a patch, and numbers that would give no finite pixels."""
        TileSettings.__post_init__(self)
        if self.patch_size > self.side:
            raise ValueError(f"patch_size {self.patch_size} is over side {self.side}")

    @property
    def grid(self) -> int:
        """Patches along each side of a picture."""
        return self.side // self.patch_size

    @property
    def tokens_across(self) -> int:
        """Visual tokens along each side, each of 2 x 2 patches; an odd grid is padded."""
        return (self.grid + 1) // 2


class VideoSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many frames of a video file are taken; each is treated as a picture."""

    frames: Side = FRAMES


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle's preprocessing, by what it is about."""

    images: PictureSettings
    videos: VideoSettings = VideoSettings()


def read_preprocessing(preprocessing: Mapping[str, Any]) -> Preprocessing:
    """Read a bundle's settings, as `settings_from_checkpoint` gave them.

    Raises:
        BundleError: Settings that are wrong.
    """
    try:
        return msgspec.convert(dict(preprocessing), Preprocessing)
    except msgspec.ValidationError as error:
        raise BundleError(
            f"The bundle's preprocessing settings are wrong ({error}); export it again."
        ) from error


def part_config(folder: Path, part: str) -> tuple[Path, str, dict[str, Any]]:
    """The configuration of one of a checkpoint's parts: the file that it is in, where in that, and itself.

    It is the config.json of the part's folder; a checkpoint of which only the shape is wanted may have it
    in its own config.json alone, as "llm_cfg" and so on.

    Raises:
        CheckpointError: There is none.
    """
    own, whole = folder / part / CONFIG_FILE, folder / CONFIG_FILE
    if own.is_file():
        return own, "", read_json(own)
    name = f"{part}_cfg"
    held = read_json(whole).get(name)
    if not isinstance(held, dict):
        raise CheckpointError(
            f"{own}: the file is missing, and {whole} has no {name}; download the checkpoint again"
        )
    return whole, name, held


def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's settings, as JSON types that `Preprocessing` takes.

    Raises:
        CheckpointError: No such file, or a setting (named) that cannot be honoured.
    """
    found, raw = image_section(folder / TOWER)
    size = raw.get("size")
    if size is not None and (not isinstance(size, dict) or not {*size} >= {"height", "width"}):
        raise CheckpointError(
            f"{found}: size {size!r} does not give height and width, to which VILA resizes every picture."
        )
    kind = part_config(folder, PROJECTOR)[2].get("mm_projector_type")
    if not isinstance(kind, str) or kind not in ORDERS:
        raise CheckpointError(
            f"{folder / PROJECTOR / CONFIG_FILE}: mm_projector_type is {kind!r}, a projector that Foveate "
            f"does not have; it has {', '.join(ORDERS)}"
        )
    tower, root = part_config(folder, TOWER)[2], read_json(folder / CONFIG_FILE)
    fields = {
        **tile_fields(found, raw),
        **({"patch_size": tower["patch_size"]} if "patch_size" in tower else {}),
        "order": ORDERS[kind],
    }
    frames = root.get("num_video_frames")
    videos = {} if frames is None else {"frames": frames}
    try:
        settings = msgspec.convert({"images": fields, "videos": videos}, Preprocessing)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{found}: the image settings are wrong ({error}).") from error
    return dict(msgspec.json.decode(msgspec.json.encode(settings)))
