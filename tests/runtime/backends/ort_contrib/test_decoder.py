"""What a decoder of contrib operators takes: prompts padded to buckets, and positions by slot."""

from collections.abc import Iterator

import numpy as np
import pytest

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.runtime.backends.ort.memory import zeros
from foveate.runtime.backends.ort_contrib.decoder import (
    PROMPT,
    STEP,
    KeptPositions,
    SlotDecoder,
    by_slot,
    prompt_bucket,
)
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.static_decoder import StaticDecoder
from tests.runtime.prompts import kept_prompt, room_for, row
from tests.runtime.watched import graph_of

LOGITS = 1e-4
"""Absolute, on logits of magnitude 20: float32 sums in another order through ten layers."""


@pytest.fixture(scope="module")
def decoder(contrib_bundle: Bundle) -> Iterator[StaticDecoder]:
    with Pipeline.load(contrib_bundle.root, device="cpu") as pipe:
        yield graph_of(pipe)


def test_a_padded_prompt_gives_the_logits_of_a_bare_one(
    decoder: StaticDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pads a bucket stands after the prompt, so nothing in the prompt sees it."""
    assert isinstance(decoder, SlotDecoder)
    monkeypatch.setattr(decoder.engine, "captures", True)
    count, width = PROMPT + 3, decoder.model.hidden_size
    bare = kept_prompt(count, width)
    places = bare.position_ids
    roomy = zeros((1, 2 * PROMPT, width), "float32", "cpu")
    roomy.numpy()[:] = 7.0
    roomy.numpy()[:, :count] = bare.embeds
    slots = zeros((2 * PROMPT, 3), "int64", "cpu")
    slots.numpy()[:] = 99
    slots.numpy()[:count] = places[:, 0].T
    held = KeptPositions(slots.viewed((count, 3)))
    assert np.array_equal(held.numpy(), places) and held.shape == places.shape
    logits = []
    for embeds, positions in (
        (bare.embeds, places),
        (roomy.viewed((1, count, width)), places),
        (roomy.viewed((1, count, width)), held),
    ):
        prompt = KeptPrompt(bare.prompt, count, embeds, positions, np.empty(0, np.int64))
        cache = decoder.allocate(room_for(2 * STEP))
        first = cache.prefill(0, prompt).logits().copy()
        second = cache.decode(row(5, count))[0].logits().copy()
        logits += [[first, second, cache.decode(row(9, count + 1))[0].logits().copy()]]
        assert cache.lengths[0] == count + 2
        cache.release(0)
    assert prompt_bucket(count) == 2 * PROMPT
    lengths = [decoder.padded_length(count) for count in (1342, 300, 1342, 300, 300, 1342, 1342)]
    assert lengths == [1344, 384, 1344, 384, 384, 1342, 1342]
    np.testing.assert_allclose(logits[1], logits[0], atol=LOGITS, rtol=0)
    assert np.array_equal(logits[2], logits[1])


def test_positions_are_handed_on_where_they_lie_unless_they_are_moved() -> None:
    memory = zeros((8, 3), "int64", "cpu")
    memory.numpy()[:] = np.arange(24).reshape(8, 3)
    held = KeptPositions(memory.viewed((4, 3)))
    whole = by_slot(held, 4, 8, 0)
    assert not isinstance(whole, np.ndarray)
    assert (whole.address, whole.shape) == (memory.address, (8, 3))
    moved = by_slot(held, 4, 6, 100)
    assert isinstance(moved, np.ndarray)
    assert moved[:4].tolist() == (np.arange(12).reshape(4, 3) + 100).tolist()
    assert not moved[4:].any()
    longer = by_slot(held, 4, 9, 0)
    assert isinstance(longer, np.ndarray) and longer.shape == (9, 3)
