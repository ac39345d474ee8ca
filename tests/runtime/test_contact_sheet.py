"""Contact sheets: what stands under and in every frame, and what cannot be drawn."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.errors import ImageError, KeepError, OutputExistsError
from foveate.families.qwen2_vl_pixels import grid_boxes
from foveate.runtime.answer import Visual
from foveate.runtime.contact_sheet import (
    BAR,
    EMPTY,
    GAP,
    LEAST,
    NARROW,
    TALLEST,
    WIDTH,
    Ranked,
    draw_contact_sheet,
    frame_grid,
    layout,
    moment,
    name,
    write_contact_sheet,
)
from foveate.runtime.heatmap import DARK, LIGHT, MARGIN, OUTLINE, kept_tokens, spread

COLOURS = [(200, 40, 40), (40, 170, 60), (40, 60, 200), (210, 180, 40)]


def film(count: int, size: tuple[int, int] = (320, 240)) -> list[Image.Image]:
    """Frames of one colour each."""
    return [Image.new("RGB", size, COLOURS[number % 4]) for number in range(count)]


def visual(kept: list[int], steps: int, together: int, grid: tuple[int, int] = (3, 4)) -> Visual:
    """Tokens of a video of `steps` times `together` frames; kept ones are the most relevant."""
    cells = grid[0] * grid[1]
    relevance = np.full(steps * cells, 0.01, np.float32)
    relevance[kept] = 0.5
    picture = np.repeat(np.arange(steps) * together, cells)
    boxes = np.tile(grid_boxes((1, *grid)), (steps, 1))
    return Visual(len(picture), len(kept), np.array(kept), relevance, picture, boxes)


def tiles(count: int, size: tuple[int, int], sheet: Image.Image) -> list[NDArray[np.uint8]]:
    """The pixels of each tile of a grid: its picture, and what stands under that."""
    columns, slot, _ = layout(count, size)
    row = sheet.height // -(-count // columns)
    pixels = np.asarray(sheet)
    corners = [(MARGIN + n % columns * (slot + GAP), n // columns * row) for n in range(count)]
    return [pixels[top : top + row, left : left + slot] for left, top in corners]


def bar(tile: NDArray[np.uint8], height: int) -> float:
    """Which share of the bar under a picture is filled."""
    line = tile[height + 3 + BAR // 2]
    filled, empty = ((line == colour).all(axis=-1).sum() for colour in (OUTLINE, EMPTY))
    assert filled + empty == len(line)
    return float(filled / len(line))


@pytest.mark.parametrize("together", [1, 2])
def test_bars_show_how_many_tokens_of_each_frame_were_kept(together: int) -> None:
    answer = visual([0, 1, 2, 12 + 5, *range(24, 36)], 4, together)
    frames = film(4 * together)
    sheet = frame_grid(frames, Ranked(answer, spread(answer.relevance), kept_tokens(answer)))
    shown = tiles(4, (320, 240), sheet)
    _, slot, (_, height) = layout(4, (320, 240))
    shares = [bar(tile, height) for tile in shown]
    assert shares == pytest.approx([3 / 12, 1 / 12, 1, 0], abs=1 / slot)


def test_a_newline_is_no_token_of_its_frame() -> None:
    answer = visual([0, 12], 2, 1)
    picture, boxes = np.append(answer.picture, 1), np.append(answer.boxes, [[0, 0, 0, 0]], axis=0)
    relevance = np.append(answer.relevance, np.float32(0.5))
    answer = Visual(25, 3, np.array([0, 12, 24]), relevance, picture, boxes)
    sheet = frame_grid(film(2), Ranked(answer, spread(relevance), kept_tokens(answer)))
    _, slot, (_, height) = layout(2, (320, 240))
    shares = [bar(tile, height) for tile in tiles(2, (320, 240), sheet)]
    assert shares == pytest.approx([1 / 12, 1 / 12], abs=1 / slot)


def test_kept_tokens_have_the_colours_of_their_frame_and_a_line_around() -> None:
    """Where two frames make one step, those of the first; the rest is in the colours of relevance."""
    answer = visual([5, 12 + 0], 2, 2)
    sheet = frame_grid(film(4), Ranked(answer, spread(answer.relevance), kept_tokens(answer)))
    _, _, (width, height) = layout(2, (320, 240))
    for tile, (row, column), number in zip(
        tiles(2, (320, 240), sheet), [(1, 1), (0, 0)], (0, 2), strict=True
    ):
        top, left = row * height // 3, column * width // 4
        cell = tile[top : top + height // 3, left : left + width // 4].astype(int)
        inner = cell[20:-20, 20:-20]
        assert np.abs(inner - COLOURS[number]).max() < 110
        assert (inner.argmax(axis=-1) == np.argmax(COLOURS[number])).mean() > 0.9
        middle = cell.shape[0] // 2
        edges = [tuple(one) for one in cell[middle, :6].tolist()]
        assert LIGHT in edges and DARK in edges
        far = tile[height - height // 6, width - width // 8].astype(int)
        assert far[2] > far[1]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16, 31, 32, 64, 384])
@pytest.mark.parametrize("frame", [(1920, 1080), (1080, 1920), (28, 28), (2000, 20), (20, 2000)])
def test_every_number_of_frames_fits_the_sheet(count: int, frame: tuple[int, int]) -> None:
    columns, slot, (width, height) = layout(count, frame)
    assert 1 <= columns <= count
    assert slot >= LEAST
    assert MARGIN + columns * (slot + GAP) - GAP <= WIDTH - MARGIN
    assert NARROW <= width <= slot and NARROW <= height <= slot * TALLEST + 1
    if 0.5 <= frame[0] / frame[1] <= 2:
        assert width / height == pytest.approx(frame[0] / frame[1], rel=0.02)
        if 4 <= count <= 64:
            rows = -(-count // columns)
            assert 500 < rows * height < 1700
            assert rows * columns - count < columns


def test_few_places_are_empty() -> None:
    assert [layout(count, (320, 180))[0] for count in (4, 16, 64)] == [2, 4, 8]


def test_what_frames_are_called() -> None:
    seconds = [0.0, 0.5, 61.25, 3725.0]
    assert [name(0, 1, seconds), name(0, 2, seconds), name(2, 4, seconds)] == [
        "0.0 s", "0.0–0.5 s", "1:01.2–1:02:05.0 s",
    ]  # fmt: skip
    assert (name(4, 5, None), name(4, 6, None)) == ("frame 5", "frames 5–6")
    assert [moment(one) for one in (59.96, 599.99, 3600)] == ["1:00.0", "10:00.0", "1:00:00.0"]


def test_a_sheet_of_an_answer(tmp_path: Path) -> None:
    answer = visual([1, 2, 20], 3, 2)
    sheet = draw_contact_sheet(film(6), answer, [0, 0.5, 1, 1.5, 2, 2.5], "What happens?")
    assert (sheet.mode, sheet.width) == ("RGB", WIDTH)
    out = tmp_path / "sheet.png"
    write_contact_sheet(out, film(5), answer)
    with Image.open(out) as untitled:
        assert (untitled.format, untitled.width) == ("PNG", WIDTH)
        assert untitled.height < sheet.height
    with pytest.raises(OutputExistsError, match="--force"):
        write_contact_sheet(out, film(6), answer)


def test_what_cannot_be_drawn() -> None:
    answer = visual([0], 3, 2)
    for count in (4, 7):
        with pytest.raises(ImageError, match=f"up to number 5 and {count} were given"):
            draw_contact_sheet(film(count), answer)
    with pytest.raises(ImageError, match="6 frames and 3 times"):
        draw_contact_sheet(film(6), answer, [0, 1, 2])
    everything = Visual(12, 12, np.arange(12), None, answer.picture[:12], answer.boxes[:12])
    with pytest.raises(KeepError, match="none were ranked"):
        draw_contact_sheet(film(2), everything)
