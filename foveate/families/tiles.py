"""Square tiles of one size, as vision towers of a fixed grid take them: settings, pixels and runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from foveate.errors import CheckpointError
from foveate.families.base import Call
from foveate.families.pixels import level_table

Side = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Channels = tuple[float, float, float]
BICUBIC = 3


class TileSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a tile's 8-bit levels become what the vision tower takes. Defaults are SigLIP's.

    Attributes:
        side: Pixels along each side.
        image_mean: For red, green, blue, after rescaling.
        image_std: For red, green, blue, after rescaling.
        rescale_factor: Multiplies the 8-bit levels.
        resample: The resize filter.
    """

    side: Side = 384
    image_mean: Channels = (0.5, 0.5, 0.5)
    image_std: Channels = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    resample: Literal["bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        """Refuse numbers that would give no finite pixels."""
        if not all(map(math.isfinite, (*self.image_mean, *self.image_std, self.rescale_factor))):
            raise ValueError("image_mean, image_std and rescale_factor must be finite")
        if min(self.image_std) <= 0:
            raise ValueError("image_std must be above zero")

    @property
    def table(self) -> NDArray[np.float32]:
        """What each 8-bit level becomes, float32 [3, 256]."""
        return level_table(self.image_mean, self.image_std, self.rescale_factor)


def tile_fields(found: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `TileSettings` that a section of image settings gives.

    Args:
        found: The file, for messages.
        raw: The section.

    Raises:
        CheckpointError: A size that is not square, or a filter that is not bicubic.
    """
    if raw.get("resample") not in (None, BICUBIC, "bicubic"):
        raise CheckpointError(
            f"{found}: resample {raw['resample']!r} is not bicubic ({BICUBIC}), "
            "the only filter that Foveate has for this family."
        )
    names = ("image_mean", "image_std", "rescale_factor")
    values = {name: raw[name] for name in names if raw.get(name) is not None}
    size = raw.get("size")
    if isinstance(size, dict):
        given = {name: value for name, value in size.items() if value}
        named, sides = set(given), set(given.values())
        if len(sides) != 1 or named not in ({"height", "width"}, {"shortest_edge"}):
            raise CheckpointError(
                f"{found}: size {size!r} is not that of a square tile; give height and width alike."
            )
        values["side"] = sides.pop()
    elif size is not None:
        values["side"] = size
    return values


@dataclass(frozen=True, slots=True)
class TilesCall(Call):
    """Tiles for a vision graph that takes any number of them.

    The input is `pixel_values` float32 [N, 3, side, side], normalised, or `levels` uint8 [N, side, side, 3].
    Each tile gives as many rows of output, in order.

    Attributes:
        each: Rows of a tile.
        beyond: Rows that every run gives after those of its tiles; those of the last run count.
    """

    each: int
    beyond: int = 0

    @property
    def rows(self) -> int:
        """Those of all tiles, and those beyond."""
        return sum(map(len, self.inputs.values())) * self.each + self.beyond

    def parts(self, most: int) -> tuple[Call, ...]:
        """Runs of 1, 2, 4 … tiles, so that any number of them is run in the same few shapes."""
        ((name, tiles),) = self.inputs.items()
        parts: list[Call] = []
        start, total = 0, len(tiles)
        while start < total:
            fitting = tiles_together(most, self.each, total - start)
            end = start + (1 << (fitting.bit_length() - 1))
            tokens = (end - start) * self.each + (self.beyond if end == total else 0)
            parts.append(TilesCall({name: tiles[start:end]}, tokens, self.each, self.beyond))
            start = end
        return tuple(parts)


def tiles_together(most: int, each: int, there: int) -> int:
    """How many of `there` tiles of `each` rows run together where a run is to have about `most` rows."""
    return min(max(1, most // each), there)


def tiles_call(
    levels: NDArray[np.uint8], each: int, table: NDArray[np.float32] | None, beyond: int = 0
) -> TilesCall:
    """A run over tiles.

    Args:
        levels: uint8 [N, side, side, 3].
        each: Rows of output that a tile gives.
        table: What each level becomes, float32 [3, 256]; None where the graph takes levels.
        beyond: See `TilesCall`.
    """
    tokens = len(levels) * each + beyond
    if table is None:
        return TilesCall({"levels": levels}, tokens, each, beyond)
    pixels = np.empty((len(levels), 3, *levels.shape[1:3]), np.float32)
    for channel in range(3):
        np.take(table[channel], levels[..., channel], out=pixels[:, channel], mode="clip")
    return TilesCall({"pixel_values": pixels}, tokens, each, beyond)
