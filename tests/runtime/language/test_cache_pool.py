"""Caches that sequences take turns with: which are kept, which are used again, which make room."""

from collections.abc import Iterator

import pytest

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, ClosedError, LimitError
from foveate.runtime.backends.ort_contrib.decoder import STEP
from foveate.runtime.language.cache_pool import SPARE, CacheMemory
from foveate.runtime.language.static_decoder import StaticDecoder
from tests.runtime.prompts import generation, kept_prompt, room_for, row
from tests.runtime.watched import graph_of


@pytest.fixture(scope="module")
def decoder(contrib_bundle: Bundle) -> Iterator[StaticDecoder]:
    """The decoder of a bundle of contrib operators."""
    with Pipeline.load(contrib_bundle.root, device="cpu") as pipe:
        graph = graph_of(pipe)
        assert isinstance(graph, StaticDecoder)
        yield graph


def test_caches_are_used_again_and_no_longer_than_the_model(decoder: StaticDecoder) -> None:
    first = decoder.allocate(room_for(STEP))
    memory = first.memory
    first.release(0)
    first.release(0)
    second = decoder.allocate(room_for(STEP - 5))
    assert second.memory is memory
    for refused in (
        lambda: first.decode(row(1, 1)),
        lambda: first.prefill(0, kept_prompt(3, decoder.model.hidden_size)),
    ):
        with pytest.raises(ClosedError, match="closed"):
            refused()
    second.release(0)
    with pytest.raises(LimitError, match="the decoder takes"):
        decoder.allocate(room_for(decoder.capabilities.most_tokens + 1))


def test_what_a_cache_has_no_room_for_is_refused(decoder: StaticDecoder) -> None:
    cache, width = decoder.allocate(room_for(STEP)), decoder.model.hidden_size
    with pytest.raises(LimitError, match=rf"has 0 tokens, and {STEP + 1} more do not fit"):
        cache.prefill(0, kept_prompt(STEP + 1, width))
    cache.prefill(0, kept_prompt(STEP, width))
    with pytest.raises(LimitError, match=rf"has {STEP} tokens, and 1 more do not fit"):
        cache.decode(row(1, STEP))
    cache.release(0)


def test_spare_caches_have_as_many_rows(decoder: StaticDecoder) -> None:
    pool = decoder.pool
    pool._spare.clear()
    settings = [generation(9, STEP - 1, 9)] * 3
    taken = [pool.take(1, STEP * size) for size in (1, 2, 3)] + [pool.take(3, STEP)]
    for memory in taken:
        pool.give_back(memory)
    assert [(one.rows, one.capacity // STEP) for one in pool._spare] == [(3, 1), (1, 2), (1, 3)]
    together = decoder.allocate(settings)
    assert together.memory is taken[-1]
    together.release(0)
    with pytest.raises(ClosedError, match="closed"):
        together.decode({0: (1, 9)})
    with pytest.raises(LimitError, match="positions"):
        together.decode({1: (1, 9), 2: (1, 10)})
    assert taken[-1] not in pool._spare
    for place in range(3):
        together.release(place)
    assert taken[-1] in pool._spare
    assert len(pool._spare) == SPARE + 1


def test_spare_caches_make_room(decoder: StaticDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = decoder.pool
    pool.give_back(pool.take(2, STEP))
    make, tried = pool._make, []

    def scarce(rows: int, capacity: int) -> CacheMemory:
        tried.append(len(pool._spare))
        if pool._spare:
            raise BackendError("no memory")
        return make(rows, capacity)

    monkeypatch.setattr(pool, "_make", scarce)
    cache = decoder.allocate([generation(9, STEP + 1)] * 4)
    assert cache.memory.states["0.key"].shape[:3:2] == (4, 2 * STEP)
    assert tried[0] > tried[1] == 0


def test_where_there_is_no_memory_at_all_it_is_said(
    decoder: StaticDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(rows: int, capacity: int) -> CacheMemory:
        raise BackendError("no memory")

    decoder.pool.give_back(decoder.pool.take(1, STEP))
    monkeypatch.setattr(decoder.pool, "_make", none)
    for _ in range(2):
        with pytest.raises(BackendError, match="no memory"):
            decoder.allocate([generation(9, STEP + 1)] * 5)
    assert decoder.pool._spare == []
