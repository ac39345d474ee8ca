"""A kept prompt: which tokens of the whole are left, and where they stand."""

from typing import Any

import numpy as np
import pytest

from foveate.errors import BackendError
from foveate.families.base import Prompt
from foveate.runtime.kept_prompt import KeptPrompt

PROMPT = Prompt(
    token_ids=np.array([1, 2, 77, 77, 77, 3, 78, 78, 4, 5]),
    visual_index=np.array([2, 3, 4, 6, 7]),
    instruction_index=np.array([8]),
    position_ids=np.arange(30).reshape(3, 10),
    next_position=42,
)


class Counted:
    """A value on a device that counts how often it is read."""

    def __init__(self, values: Any) -> None:
        self.values, self.reads = np.array(values), 0

    def numpy(self) -> np.ndarray[Any, Any]:
        self.reads += 1
        return self.values


def kept(indices: Any, relevance: Any = None) -> KeptPrompt:
    """The prompt with some of its visual tokens."""
    length = 5 + len(indices.values)
    return KeptPrompt(
        PROMPT, length, np.zeros((1, length, 4)), np.zeros((3, 1, length), np.int64), indices, relevance
    )  # fmt: skip


@pytest.mark.parametrize(
    ("indices", "places", "visual"),
    [
        ([0, 3], [0, 1, 2, 5, 6, 8, 9], [0, 0, 1, 0, 1, 0, 0]),
        ([4], [0, 1, 5, 7, 8, 9], [0, 0, 0, 1, 0, 0]),
        ([0, 1, 2, 3, 4], list(range(10)), [0, 0, 1, 1, 1, 0, 1, 1, 0, 0]),
    ],
)
def test_what_is_left_keeps_its_order(
    indices: list[int], places: list[int], visual: list[int]
) -> None:
    prompt = kept(Counted(indices))
    assert prompt.kept_index.tolist() == places
    assert prompt.token_ids.tolist() == PROMPT.token_ids[places].tolist()
    assert prompt.visual.tolist() == [bool(one) for one in visual]
    assert prompt.visual.dtype == np.bool_
    assert prompt.length == len(places) == len(prompt.token_ids)
    assert prompt.next_position == 42


def test_the_device_is_read_once_and_when_it_is_asked_for() -> None:
    indices, relevance = Counted([1, 2]), Counted([0.1, 0.4, 0.3, 0.1, 0.1])
    prompt = kept(indices, relevance)
    assert (indices.reads, relevance.reads, prompt.next_position) == (0, 0, 42)
    for _ in range(2):
        assert prompt.selection().indices.tolist() == [1, 2]
        assert prompt.selection().relevance is relevance.values
        assert len(prompt.token_ids) == 7
    assert (indices.reads, relevance.reads) == (1, 1)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_relevance_that_is_not_finite_is_refused(odd: float) -> None:
    prompt = kept(Counted([0]), Counted([0.5, odd, 0, 0, 0]))
    with pytest.raises(
        BackendError, match=r"relevance scores are not finite.*weights hold or make"
    ):
        prompt.selection()
