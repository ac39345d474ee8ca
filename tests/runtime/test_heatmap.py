"""Heatmaps: what every pixel says, and what cannot be drawn."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.errors import ImageError, KeepError, OutputError, OutputExistsError
from foveate.families.qwen2_vl_pixels import grid_boxes
from foveate.runtime.answer import Visual
from foveate.runtime.heatmap import (
    LEAST_WIDTH,
    LEGEND,
    MARGIN,
    MOST_HEIGHT,
    check_target,
    colours,
    draw_heatmap,
    draw_heatmaps,
    spread,
    write_heatmap,
)

GREEN = (40, 170, 60)


def shown(*grids: tuple[int, int, int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which frame, and which part of it, each token of some grids shows."""
    frames = np.arange(sum(steps for steps, _, _ in grids))
    sizes = [rows * columns for steps, rows, columns in grids for _ in range(steps)]
    return np.repeat(frames, sizes), np.concatenate([grid_boxes(grid) for grid in grids])


def visual(kept: list[int], *grids: tuple[int, int, int], seed: int = 0) -> Visual:
    total = sum(int(np.prod(grid)) for grid in grids)
    relevance = np.random.default_rng(seed).random(total).astype(np.float32)
    relevance /= relevance.sum()
    return Visual(total, len(kept), np.array(kept), relevance, *shown(*grids))


def panel(sheet: Image.Image, number: int, height: int) -> NDArray[np.uint8]:
    """Panel 0, 1 or 2 of a sheet whose panels are as wide as they need be."""
    slot = (sheet.width - 4 * MARGIN) // 3
    left = MARGIN + number * (slot + MARGIN)
    return np.asarray(sheet)[MARGIN : MARGIN + height, left : left + slot]


def test_kept_patches_keep_their_colours_and_the_rest_does_not() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (336, 448, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    kept = [0, 5, 6, 11]
    sheet = draw_heatmap(picture, visual(kept, (1, 3, 4)))
    original, result = panel(sheet, 0, 336), panel(sheet, 2, 336)
    assert (original == noise).all()
    for token in range(12):
        row, column = divmod(token, 4)
        patch = np.s_[row * 112 : row * 112 + 112, column * 112 : column * 112 + 112]
        if token in kept:
            assert (result[patch] == original[patch]).all()
        else:
            inner = result[patch][4:-4, 4:-4].astype(int)
            assert inner.min() > 150
            assert np.ptp(inner, axis=-1).max() == 0


def test_the_caption_counts_tokens_and_not_the_cells_they_are_drawn_in() -> None:
    """Nine tokens of unequal boxes lie on a grid of 5 x 5 cells; the sheet is that of a grid of 3 x 3."""
    plain = visual([4], (1, 3, 3))
    edges = np.array([0, 0.4, 0.8, 1], np.float32)
    left, top = np.meshgrid(edges[:-1], edges[:-1])
    right, bottom = np.meshgrid(edges[1:], edges[1:])
    boxes = np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4)
    picture = Image.new("RGB", (448, 448), GREEN)
    sheets = [
        np.asarray(draw_heatmap(picture, one))
        for one in (plain, dataclasses.replace(plain, boxes=boxes))
    ]
    below = MARGIN + 448
    assert (sheets[0][below:] == sheets[1][below:]).all()
    assert (sheets[0][:below] != sheets[1][:below]).any()


def test_kept_region_has_an_outline_on_the_dropped_side() -> None:
    sheet = draw_heatmap(Image.new("RGB", (448, 448), GREEN), visual([5], (1, 4, 4)))
    result = panel(sheet, 2, 448)
    for row, column in ((111, 150), (224, 150), (150, 111), (150, 224)):
        red, green, blue = result[row, column].tolist()
        assert red > 200 > 100 > max(green, blue)
    assert tuple(result[112, 112]) == GREEN


def test_relevance_is_brightest_where_it_is_highest() -> None:
    relevance = np.full(16, 0.01, dtype=np.float32)
    relevance[10] = 0.85
    answer = Visual(16, 4, np.arange(4), relevance, *shown((1, 4, 4)))
    sheet = draw_heatmap(Image.new("RGB", (448, 448), GREEN), answer)
    light = panel(sheet, 1, 448).astype(float).mean(axis=-1)
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert (row // 112, column // 112) == (2, 2)


@pytest.mark.parametrize(
    ("size", "grid"),
    [((60, 45), (1, 3, 4)), ((2000, 1500), (1, 30, 40)), ((28, 2800), (1, 100, 1)),
     ((2800, 28), (1, 1, 100)), ((1, 1), (1, 2, 2))],
)  # fmt: skip
def test_sizes_for_any_picture(size: tuple[int, int], grid: tuple[int, int, int]) -> None:
    sheet = draw_heatmap(Image.new("RGB", size, GREEN), visual([0], grid))
    slot = (sheet.width - 4 * MARGIN) // 3
    assert slot >= (LEAST_WIDTH if size[0] >= size[1] // 2 else LEGEND)
    assert sheet.height <= MOST_HEIGHT + 100


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_modes(mode: str) -> None:
    sheet = draw_heatmap(Image.new(mode, (100, 100)), visual([1], (1, 2, 2)))
    assert sheet.mode == "RGB"


def test_several_pictures_each_get_their_own_tokens() -> None:
    pictures = [Image.new("RGB", (448, 448), GREEN), Image.new("RGB", (448, 224), GREEN)]
    answer = visual([0, 1, 2, 3, 5], (1, 2, 2), (1, 1, 2))
    first, second = (draw_heatmap(one, answer, n) for n, one in enumerate(pictures))
    assert (panel(first, 2, 448) == GREEN).all()
    result = panel(second, 2, 224)
    assert (result[:, 224:] == GREEN).all()
    assert not (result[4:-4, 4:220] == GREEN).all(axis=-1).any()
    whole = draw_heatmaps(pictures, answer)
    assert (whole.width, whole.height) == (first.width, first.height + second.height)


def test_frames_of_one_place_are_drawn_together() -> None:
    apart = visual([4], (2, 2, 2))
    together = dataclasses.replace(apart, picture=np.zeros(8, np.int64))
    for answer, index in ((together, 0), (apart, 1)):
        picture = Image.new("RGB", (448, 448), GREEN)
        result = panel(draw_heatmap(picture, answer, index), 2, 448)
        assert (result[:224, :224] == GREEN).all()
        assert not (result[230:, 230:] == GREEN).all(axis=-1).any()
    assert together.pictures == 1 and apart.pictures == 2


@pytest.mark.parametrize(
    "relevance",
    [np.zeros(6), np.full(6, 0.2), np.array([np.nan, 1, 0, np.inf, 0, 0]), np.array([0, 0, 0, 0, 0, 1e-30])],
)  # fmt: skip
def test_odd_relevance_is_drawn_all_the_same(relevance: NDArray[np.float64]) -> None:
    scaled = spread(relevance)
    assert np.isfinite(scaled).all()
    assert scaled.min() >= 0
    assert scaled.max() <= 1


def test_spread_keeps_the_order_and_shows_the_middle() -> None:
    peaked = np.exp(np.linspace(0, 12, 200))
    scaled = spread(peaked / peaked.sum())
    assert (np.diff(scaled) >= 0).all()
    assert 0.1 < np.median(scaled) < 0.3


def test_colours_grow_lighter() -> None:
    light = colours(np.linspace(0, 1, 64)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).all()


def test_what_cannot_be_drawn() -> None:
    picture = Image.new("RGB", (56, 56))
    everything = Visual(4, 4, np.arange(4), None, *shown((1, 2, 2)))
    with pytest.raises(KeepError, match="none were ranked"):
        draw_heatmap(picture, everything)
    with pytest.raises(ImageError, match="no picture 2"):
        draw_heatmap(picture, visual([0], (1, 2, 2)), 1)
    with pytest.raises(ImageError, match="1 pictures and 2"):
        draw_heatmaps([picture, picture], visual([0], (1, 2, 2)))


def test_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out, picture = tmp_path / "map.png", Image.new("RGB", (56, 56))
    write_heatmap(out, [picture], visual([0], (1, 2, 2)))
    with Image.open(out) as drawn:
        drawn.load()
    with pytest.raises(OutputExistsError, match="--force"):
        write_heatmap(out, [picture], visual([0], (1, 2, 2)))
    write_heatmap(out, [picture], visual([1], (1, 2, 2)), force=True)
    assert os.listdir(tmp_path) == ["map.png"]


def test_target_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for name in ("map.gif", "map", "none/map.png", "file/map.png"):
        with pytest.raises(OutputError):
            check_target(tmp_path / name)
    with pytest.raises(OutputExistsError, match="plain file"):
        check_target(tmp_path / "folder.png", force=True)
