"""The pictures and questions that nano is trained and measured on."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from tasks.data import KINDS
from tasks.palette import HELD_OUT
from tasks.picture import Picture
from tasks.render import render

SIZE = (322, 336)


def drawn(kind: str, seed: int = 3, held_out: bool = True) -> Picture:
    return KINDS[kind](np.random.default_rng(seed), SIZE, held_out)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_drawn_the_same_again_and_has_one_answer_to_each_question(kind: str) -> None:
    picture = drawn(kind)
    again = drawn(kind)
    assert picture == again
    assert np.array_equal(render([picture]).numpy(), render([again]).numpy())
    answers: dict[str, str] = {}
    for question in picture.questions:
        assert answers.setdefault(question.text, question.answer) == question.answer
    assert render([picture]).shape == (1, *SIZE, 3)


@pytest.mark.parametrize("kind", ["codes", "long-codes", "words", "numbers", "table", "lines"])
def test_boxes_hold_all_that_is_written(kind: str) -> None:
    picture = drawn(kind)
    bare = Picture(kind, SIZE, picture.background, picture.grounds, picture.shapes)
    (ink,) = (render([picture]).int() - render([bare]).int()).abs().sum(-1).numpy() > 120
    inside = np.zeros(SIZE, dtype=bool)
    for question in picture.questions:
        for top, left, bottom, right in question.boxes:
            inside[
                max(0, int(top) - 2) : int(bottom) + 3, max(0, int(left) - 3) : int(right) + 4
            ] = True
    assert (ink & ~inside).sum() <= 0.01 * ink.sum()
    assert all((ink & inside).sum() > 0 for _ in picture.questions)


def test_plates_are_told_apart_by_ground_and_ink() -> None:
    things = drawn("codes").things
    assert len(things) == 9
    assert len({(ground, ink) for ground, ink, _ in things}) == len(things)
    assert all(4 <= len(code) <= 6 for *_, code in things)


def test_held_out_shades_are_not_those_of_training() -> None:
    grounds = {ground[4] for ground in drawn("table").grounds}
    for rgb in grounds:
        assert min(np.abs(np.subtract(rgb, shade)).max() for shade in HELD_OUT.values()) <= 14
    assert grounds.isdisjoint(ground[4] for ground in drawn("table", held_out=False).grounds)
