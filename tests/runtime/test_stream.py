"""Streams: an answer in pieces, which may be left early; on every engine."""

import gc
from typing import Any

import pytest

from foveate import Pipeline
from foveate.errors import BackendError, FoveateError
from tests.conftest import Sample
from tests.runtime.watched import graph_of, watch


@pytest.fixture(scope="module")
def scene(samples: list[Sample]) -> Sample:
    return next(sample for sample in samples if sample.task == "letter")


def test_a_stream_is_the_answer_in_pieces(engine: Pipeline, scene: Sample) -> None:
    stream = engine.stream("Describe the picture.", images=[scene.image], keep=1.0)
    with pytest.raises(FoveateError):
        _ = stream.answer
    pieces = list(stream)
    assert len(pieces) > 3
    assert all(pieces)
    assert "".join(pieces) == stream.answer.text
    assert list(stream) == []


def test_a_stream_holds_back_half_a_character(engine: Pipeline, scene: Sample) -> None:
    """Random tokens break characters apart; the pieces still join to the text."""
    for seed in range(5):
        stream = engine.stream(
            scene.question, images=[scene.image], temperature=50.0, seed=seed, max_new_tokens=40
        )
        assert "".join(stream) == stream.answer.text


def asked(scene: Sample) -> dict[str, Any]:
    """A long answer about a picture."""
    return {"images": [scene.image], "keep": 0.5, "max_new_tokens": 24, "ignore_eos": True}


def test_leaving_early_cancels_the_rest_and_gives_the_cache_back(
    engine: Pipeline, scene: Sample
) -> None:
    watching, watched = watch(engine)
    with watching.stream("Describe the picture.", **asked(scene)) as stream:
        assert len(watched.seen) == 1
        next(stream)
        next(stream)
        assert watched.released == 0
    steps = len(watched.seen)
    assert (watched.released, 1 < steps < 24) == (1, True)
    assert list(stream) == []
    assert len(watched.seen) == steps
    assert stream.answer.finish_reason == "cancelled"
    assert len(stream.answer.token_ids) == steps
    stream.close()


def test_an_error_inside_gives_the_cache_back_too(engine: Pipeline, scene: Sample) -> None:
    watching, watched = watch(engine)
    with (
        pytest.raises(KeyError, match="mine"),
        watching.stream("Describe the picture.", **asked(scene)) as stream,
    ):
        next(stream)
        raise KeyError("mine")
    assert watched.released == 1


def test_a_stream_that_nobody_reads_gives_its_cache_back(engine: Pipeline, scene: Sample) -> None:
    watching, watched = watch(engine)
    stream = watching.stream("Describe the picture.", **asked(scene))
    assert watched.released == 0
    del stream
    gc.collect()
    assert watched.released == 1


def test_a_cache_that_was_given_back_serves_the_next_answer(
    engine: Pipeline, scene: Sample
) -> None:
    wanted = engine.generate("Describe the picture.", **asked(scene)).token_ids
    pool = getattr(graph_of(engine), "pool", None)
    spare = len(pool._spare) if pool else 0
    for _ in range(3):
        with engine.stream("Describe the picture.", **asked(scene)) as stream:
            next(stream)
            if pool:
                assert len(pool._spare) == spare - 1
        if pool:
            assert len(pool._spare) == spare
    with engine.stream("Describe the picture.", **asked(scene)) as stream:
        assert "".join(stream) == stream.answer.text
    assert stream.answer.token_ids == wanted


def test_a_first_token_that_fails_gives_the_cache_back(
    engine: Pipeline, scene: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching, watched = watch(engine)

    def fail(*_: object) -> None:
        raise BackendError("no memory")

    monkeypatch.setattr(engine._backend, "compress", fail)
    with pytest.raises(BackendError, match="no memory"):
        watching.stream("Describe the picture.", **asked(scene))
    assert watched.released == 1
