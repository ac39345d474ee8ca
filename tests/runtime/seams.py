"""What holds on every engine, of whatever precision: which tokens are kept, pictures encoded once, streams."""

import threading
from typing import Any

import numpy as np
from PIL import Image

from foveate import Pipeline
from tests.runtime.watched import graph_of, watch

QUESTION, OTHER = "What shape has the letter K?", "How many stars are there in the picture?"


def check_kept_tokens(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    """Named tokens, those of another text, and budgets for each picture."""
    options: dict[str, Any] = {"images": pictures, "max_new_tokens": 6}
    ranked = pipe.generate(QUESTION, **options, keep=0.25)
    named = pipe.generate(QUESTION, **options, kept=ranked.visual.indices)
    assert np.array_equal(named.visual.indices, ranked.visual.indices)
    assert named.token_ids == ranked.token_ids
    other = pipe.generate(OTHER, **options, keep=0.25)
    mixed = pipe.generate(QUESTION, **options, keep=0.25, rank_by=OTHER)
    assert np.array_equal(mixed.visual.indices, other.visual.indices)
    again = pipe.generate(QUESTION, **options, kept=other.visual.indices)
    assert again.token_ids == mixed.token_ids
    each = pipe.generate(QUESTION, **options, keep=9, rank="each").visual
    assert np.bincount(each.picture[each.indices]).tolist() == [9] * len(pictures)
    whole = pipe.generate(QUESTION, **options, keep=1.0)
    all_named = pipe.generate(QUESTION, **options, kept=range(whole.visual.total))
    assert all_named.token_ids == whole.token_ids


def check_encoded_pictures(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    """Two questions about one encoded picture, from two threads, while others are encoded."""
    seen = pipe.encode(images=pictures)
    wanted = {
        question: pipe.generate(question, images=pictures, keep=0.25, max_new_tokens=6)
        for question in (QUESTION, OTHER)
    }
    found: dict[str, list[Any]] = {}

    def ask(question: str) -> None:
        """Ask it five times."""
        found[question] = [seen.generate(question, keep=0.25, max_new_tokens=6) for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(question,)) for question in wanted]
    for thread in threads:
        thread.start()
    for number in range(4):
        pipe.encode(images=pictures[number % len(pictures) :])
    for thread in threads:
        thread.join()
    for question, answers in found.items():
        for answer in answers:
            assert answer.token_ids == wanted[question].token_ids
            assert np.array_equal(answer.visual.indices, wanted[question].visual.indices)
    assert found.keys() == wanted.keys()


def check_streams_left_early(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    """The cache comes back and no more is decoded."""
    options: dict[str, Any] = {
        "images": pictures,
        "keep": 0.5,
        "max_new_tokens": 24,
        "ignore_eos": True,
    }
    wanted = pipe.generate("Describe the picture.", **options).token_ids
    pool = getattr(graph_of(pipe), "pool", None)
    spare = len(pool._spare) if pool else 0
    for _ in range(3):
        watching, watched = watch(pipe)
        with watching.stream("Describe the picture.", **options) as stream:
            next(stream)
        steps = len(watched.seen)
        assert list(stream) == []
        assert (watched.released, len(watched.seen), steps < 24) == (1, steps, True)
        assert pool is None or len(pool._spare) == spare
    assert pipe.generate("Describe the picture.", **options).token_ids == wanted
