"""Sheets of several questions about one picture: each has its own panels."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.errors import KeepError, PromptError
from foveate.families.qwen2_vl_pixels import grid_boxes
from foveate.runtime.answer import Visual
from foveate.runtime.heatmap import CAPTION, MARGIN
from foveate.runtime.question_sheet import Asked, draw_questions

GREEN = (40, 170, 60)
SIDE = 448


def asked(question: str, kept: list[int]) -> Asked:
    """A question that kept some of 16 tokens."""
    relevance = np.full(16, 0.01, np.float32)
    relevance[kept] = 0.9
    shown = np.zeros(16, np.int64), grid_boxes((1, 4, 4))
    return Asked(question, "E", Visual(16, len(kept), np.array(kept), relevance, *shown))


def panels(sheet: Image.Image, column: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A column's two panels, of a sheet of one row of questions."""
    left = MARGIN + column * (SIDE + MARGIN)
    pixels = np.asarray(sheet)[:, left : left + SIDE]
    top = sheet.height - MARGIN - 2 * (SIDE + CAPTION) + MARGIN
    lower = top + SIDE + CAPTION
    return pixels[top : top + SIDE], pixels[lower : lower + SIDE]


def test_each_question_has_its_own_relevance_and_tokens() -> None:
    picture = Image.new("RGB", (SIDE, SIDE), GREEN)
    questions = [asked("What letter is in the red square?", [5]), asked("Which?", [10, 11])]
    sheet = draw_questions(picture, questions)
    assert sheet.width == MARGIN + 3 * (SIDE + MARGIN)
    upper, lower = panels(sheet, 0)
    assert (upper == GREEN).all()
    assert (lower == 255).all()
    for column, kept in ((1, [5]), (2, [10, 11])):
        relevance, alone = panels(sheet, column)
        for token in range(16):
            row, place = divmod(token, 4)
            cell = np.s_[row * 112 + 4 : row * 112 + 108, place * 112 + 4 : place * 112 + 108]
            assert (alone[cell] == GREEN).all() == (token in kept)
        light = relevance.astype(float).mean(axis=-1)
        row, place = np.unravel_index(light.argmax(), light.shape)
        assert row // 112 * 4 + place // 112 in kept


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 2, 1), (3, 4, 1), (4, 4, 2), (7, 4, 3)])
def test_many_questions_go_on_below(count: int, columns: int, rows: int) -> None:
    questions = [asked(f"Question {number}? " * 12, [number]) for number in range(count)]
    sheet = draw_questions(Image.new("RGB", (SIDE, SIDE), GREEN), questions)
    assert sheet.width == MARGIN + columns * (SIDE + MARGIN)
    assert rows == round(sheet.height / (2 * (SIDE + CAPTION) + 150))


def test_what_cannot_be_drawn() -> None:
    picture = Image.new("RGB", (SIDE, SIDE))
    with pytest.raises(PromptError, match="no question"):
        draw_questions(picture, [])
    one = asked("?", [1]).visual
    whole = Visual(16, 16, np.arange(16), None, one.picture, one.boxes)
    with pytest.raises(KeepError, match="none were ranked"):
        draw_questions(picture, [Asked("?", "E", whole)])
