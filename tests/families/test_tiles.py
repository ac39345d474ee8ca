"""Tiles: their settings, and the runs that they are cut into."""

from pathlib import Path

import numpy as np
import pytest

from foveate.errors import CheckpointError
from foveate.families.tiles import TileSettings, tile_fields, tiles_call

FILE = Path("checkpoint/preprocessor_config.json")


@pytest.mark.parametrize(
    ("count", "most", "runs"),
    [(1, 256, [1]), (7, 1, [1] * 7), (7, 40, [4, 2, 1]), (8, 100, [8]), (5, 20, [2, 2, 1])],
)
@pytest.mark.parametrize("beyond", [0, 1])
def test_tiles_run_in_powers_of_two(count: int, most: int, runs: list[int], beyond: int) -> None:
    levels = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    parts = tiles_call(levels, 9, None, beyond).parts(most)
    assert [len(part.inputs["levels"]) for part in parts] == runs
    assert sum(part.tokens for part in parts) == count * 9 + beyond
    assert [part.tokens for part in parts[:-1]] == [9 * run for run in runs[:-1]]
    np.testing.assert_array_equal(np.concatenate([part.inputs["levels"] for part in parts]), levels)


@pytest.mark.parametrize("size", [336, {"height": 336, "width": 336}, {"shortest_edge": 336}, None])
def test_settings_of_square_tiles_are_read(size: object) -> None:
    raw = {"size": size, "image_std": [0.5, 0.25, 0.5], "resample": 3, "image_mean": None}
    settings = TileSettings(**tile_fields(FILE, raw))
    assert settings.side == (384 if size is None else 336)
    assert settings.image_std == [0.5, 0.25, 0.5]
    assert settings.image_mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "raw",
    [
        {"size": {"height": 336, "width": 384}},
        {"size": {"longest_edge": 384}},
        {"size": {"height": 336}},
        {"resample": 2},
    ],
)
def test_settings_that_are_not_those_of_tiles_are_refused(raw: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(raw))):
        tile_fields(FILE, raw)
