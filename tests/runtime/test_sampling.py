"""The next token: all logits are read only where the best one does not decide it."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from foveate.runtime.language.base import NextLogits
from foveate.runtime.logits_processors import penalise_seen
from foveate.runtime.sampling import Sampler, Sampling

VOCABULARY = 12


def unread() -> NDArray[np.float32]:
    """Refuse to be read."""
    raise AssertionError("the logits were read")


def next_logits(logits: NDArray[np.float32]) -> NextLogits:
    """The logits of a graph that gives their argmax, too."""
    return NextLogits(lambda: logits[None], lambda: logits[None].argmax(axis=1))


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.05, 3.0])
def test_greedy_tokens_are_the_best_of_penalised_logits(penalty: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(400):
        # Few levels, so that there are ties, zeros and negative bests.
        logits = (random.integers(-3, 3, VOCABULARY) - random.integers(0, 3)).astype(np.float32)
        seen = random.integers(0, VOCABULARY, random.integers(1, 6))
        sampler = Sampler(Sampling(repetition_penalty=penalty), seen)
        wanted = penalise_seen(logits, set(seen.tolist()), penalty) if penalty != 1 else logits
        token = sampler.choose(next_logits(logits))
        assert token == wanted.argmax()
        assert token in sampler.seen


def test_logits_are_read_only_where_they_are_needed() -> None:
    best = NextLogits(unread, lambda: np.array([4]))
    assert Sampler(Sampling(), np.array([4])).choose(best) == 4
    assert Sampler(Sampling(repetition_penalty=1.1), np.array([3])).choose(best) == 4
    needing: list[dict[str, Any]] = [
        {"repetition_penalty": 1.1}, {"repetition_penalty": 0.9}, {"temperature": 1.0},
    ]  # fmt: skip
    for options in needing:
        with pytest.raises(AssertionError, match="were read"):
            Sampler(Sampling(**options), np.array([4])).choose(best)


def test_a_row_of_logits() -> None:
    logits = np.array([[0, 1, 0], [5, 2, 5]], np.float32)
    assert [NextLogits(lambda: logits, row=row).argmax() for row in (0, 1)] == [1, 0]
    assert NextLogits(lambda: logits, lambda: np.array([2, 1]), 1).argmax() == 1
    assert NextLogits(lambda: logits, row=1).logits().tolist() == [5, 2, 5]
