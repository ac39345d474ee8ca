"""What sheets show: every panel's pixels."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.calibration.dataset import Record
from foveate.calibration.drawing.entry import (
    KeptAnswer,
    RankedTokens,
    SheetEntry,
    signed_colours,
    signed_spread,
)
from foveate.calibration.drawing.sheet import (
    GAP,
    GUTTER,
    GUTTER_COLOURS,
    PANEL,
    draw_sheet,
    masked,
    panel_size,
)
from tests.calibration.boxes import Shown, tiled

GREEN = (40, 170, 60)
FOUR = tiled((4, 4))


def ranked(scores: list[float], kept: list[int], name: str = "R_v") -> RankedTokens:
    left = KeptAnswer(0.5, np.array(kept), "E", True, None)
    return RankedTokens(name, "of a test", np.array(scores, dtype=np.float32), (left,))


def one_entry(
    shown: Shown, *rankings: RankedTokens, size: tuple[int, int] = (400, 400)
) -> SheetEntry:
    pictures = tuple(Image.new("RGB", size, GREEN) for _ in np.unique(shown.picture))
    record = Record("1", (Path("scene.png"),) * len(pictures), "What?", ())
    return SheetEntry(record, pictures, shown, "E", rankings)


def panel(sheet: Image.Image, column: int, row: int = 0, width: int = PANEL) -> NDArray[np.uint8]:
    """A panel of a sheet; rows begin and end with the label at the left."""
    pixels = np.asarray(sheet)
    label = np.isin(pixels[:, GAP // 2 + 1], GUTTER_COLOURS).all(axis=-1).astype(int)
    edges = np.diff(label, prepend=0, append=0)
    begin, end = np.flatnonzero(edges == 1)[row], np.flatnonzero(edges == -1)[row]
    left = GUTTER + GAP // 2 + column * (PANEL + GAP)
    return pixels[begin:end, left : left + width]


def cell(pixels: NDArray[np.uint8], token: int, side: int) -> NDArray[np.uint8]:
    """One token's pixels in the panel of a grid of `side` rows and columns."""
    step = PANEL // side
    row, column = divmod(token, side)
    return pixels[row * step : (row + 1) * step, column * step : (column + 1) * step]


def test_dropped_tokens_are_exactly_white_and_kept_ones_exactly_the_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 250, (PANEL, PANEL, 3), dtype=np.uint8)
    entry = one_entry(FOUR, ranked([0.1] * 16, [0, 5, 6, 11]))
    entry.pictures[0].paste(Image.fromarray(noise).resize(entry.pictures[0].size))
    sheet = draw_sheet([entry])
    original, result = panel(sheet, 0), panel(sheet, 2)
    for token in range(16):
        inner = cell(result, token, 4)
        if token in (0, 5, 6, 11):
            assert (inner == cell(original, token, 4))[1:-1, 1:-1].all()
        else:
            assert (inner == 255).all()


def test_outline_is_on_the_kept_side_alone() -> None:
    kept = np.array([[True, False], [False, False]])
    result = np.asarray(masked(Image.new("RGB", (80, 80), GREEN), kept))
    assert (result[:, 40:] == 255).all()
    assert (result[40:] == 255).all()
    assert (result[:39, :39] == GREEN).all()
    assert not (result[39, :40] == GREEN).all(axis=-1).any()
    assert not (result[39, :40] == 255).all(axis=-1).any()


@pytest.mark.parametrize("rest", [0.01, -0.01])
def test_map_is_hottest_where_relevance_is_planted(rest: float) -> None:
    scores = [rest] * 16
    scores[9], scores[2] = 0.4, 3 * rest
    pixels = panel(draw_sheet([one_entry(FOUR, ranked(scores, [9]))]), 1).astype(float)
    light = pixels.mean(axis=-1)
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert (row // (PANEL // 4), column // (PANEL // 4)) == (2, 1)


def test_negative_relevance_is_cold_and_positive_is_warm() -> None:
    scores = [0.0] * 16
    scores[5], scores[10], scores[0] = 0.3, -0.3, 0.003
    pixels = panel(draw_sheet([one_entry(FOUR, ranked(scores, [5]))]), 1).astype(int)
    warm, cold = (cell(pixels, token, 4)[40:56, 40:56].mean(axis=(0, 1)) for token in (5, 10))
    assert warm[0] > warm[2] + 40
    assert cold[2] > cold[0] + 40


def test_signed_scale_keeps_sign_order_and_size() -> None:
    scores = np.array([-0.2, -0.05, -0.001, 0.0, 0.002, 0.05, 0.1])
    scaled = signed_spread(scores)
    assert (np.diff(scaled) > 0).all()
    assert (np.sign(scaled) == np.sign(scores)).all()
    assert scaled[1] == -scaled[5]
    assert signed_spread(np.array([np.nan, np.inf, 0.0])).tolist() == [0, 0, 0]
    light = signed_colours(np.linspace(-1, 1, 65)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light)[:32] < 0).all()
    assert (np.diff(light)[32:] > 0).all()
    assert light[0] < light[-1] - 80


def test_each_picture_and_ranking_has_a_row_with_its_own_tokens() -> None:
    rankings = ranked([0.1] * 8, [0, 1, 2, 3]), ranked([0.1] * 8, [4, 5, 6, 7], "f_θ")
    sheet = draw_sheet([one_entry(tiled((2, 2), (2, 2)), *rankings)])
    whole = [bool((panel(sheet, 2, row) == GREEN).all()) for row in range(4)]
    empty = [bool((panel(sheet, 2, row) == 255).all()) for row in range(4)]
    assert whole == [True, False, False, True]
    assert empty == [False, True, True, False]


@pytest.mark.parametrize(
    ("size", "grid"),
    [((1, 1), (1, 1)), ((4000, 20), (1, 40)), ((20, 4000), (40, 1)), ((900, 700), (3, 4))],
)
def test_any_picture_is_drawn_to_be_seen(size: tuple[int, int], grid: tuple[int, int]) -> None:
    tokens = int(np.prod(grid))
    sheet = draw_sheet([one_entry(tiled(grid), ranked([-0.1] * tokens, [0]), size=size)])
    width, height = panel_size(size)
    assert min(width, height) >= 48
    assert panel(sheet, 0, width=width).shape[:2] == (height, width)
    assert (panel(sheet, 0, width=width) == GREEN).all()
    assert sheet.height < 700


def test_where_boxes_overlap_any_kept_token_keeps_and_the_most_relevant_is_shown() -> None:
    """A token of the whole picture, one of its left half, then 4 x 4 tiles."""
    wide = np.array([(0, 0, 1, 1), (0, 0, 0.5, 1)], np.float32)
    shown = Shown(np.zeros(18, np.int64), np.concatenate([wide, FOUR.boxes]))
    scores = [0.1, 0.3, *[0.0] * 16]
    scores[2 + 7] = 0.9
    for kept, tiles in (([0], set(range(16))), ([1, 9], {0, 1, 4, 5, 8, 9, 12, 13, 7}), ([9], {7})):
        sheet = draw_sheet([one_entry(shown, ranked(scores, kept))])
        result = panel(sheet, 2)
        for tile in range(16):
            inner = cell(result, tile, 4)[2:-2, 2:-2]
            assert (inner == (GREEN if tile in tiles else 255)).all()
    light = panel(sheet, 1).astype(float).mean(axis=-1)
    middles = [light[48 + 96 * row, 48 + 96 * column] for row in range(4) for column in range(4)]
    assert np.argmax(middles) == 7
    assert min(middles[tile] for tile in (0, 1, 4, 5, 8, 9, 12, 13)) > middles[15]
