"""Random values in every field of a request: an answer equal to that of plain values, or our own error."""

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foveate import Pipeline, Request
from foveate.bundle.reader import Bundle
from foveate.errors import FoveateError
from foveate.runtime.request_check import LOADING, check_loading
from tests.runtime.media.made import encoded, smooth

SMALL = smooth(84, 112)
FIXED = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.sampled_from([np.True_, np.float16("nan"), np.array(2), np.array([1, 2]), object(), int, SMALL]),
)  # fmt: skip
ODDS = st.one_of(
    ODD, st.lists(ODD, max_size=3), st.dictionaries(st.text(max_size=2), ODD, max_size=2)
)


def as_any(low: int, high: int) -> st.SearchStrategy[Any]:
    """A whole number in range, of Python's type or one of numpy's."""
    kinds = st.sampled_from([int, np.int64, np.uint8, np.int16])
    return st.builds(lambda kind, value: kind(value), kinds, st.integers(low, high))


def as_real(low: float, high: float) -> st.SearchStrategy[Any]:
    """A number in range, of Python's types or one of numpy's."""
    kinds = st.sampled_from([float, np.float64, np.float32, Fraction])
    return st.builds(lambda kind, value: kind(value), kinds, st.floats(low, high, width=16))


RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.text(min_size=1, max_size=20),
    "images": st.sampled_from([[SMALL], [encoded(SMALL)], (SMALL,), np.asarray(SMALL)[None]]),
    "video": st.sampled_from([[SMALL] * 2, np.stack([np.asarray(SMALL)] * 2)]),
    "encoded": st.none(),
    "prefix": st.none(),
    "keep": st.one_of(as_real(0.0, 1.0), as_any(1, 12)),
    "kept": st.lists(as_any(0, 11), max_size=4),
    "rank_by": st.text(max_size=8),
    "rank": st.sampled_from(["together", "each"]),
    "max_pixels": st.integers(784, 20000),
    "min_pixels": st.integers(1, 784),
    "max_new_tokens": as_any(1, 2),
    "temperature": as_real(0.0, 4.0),
    "top_p": as_real(0.0, 1.0),
    "top_k": as_any(0, 50),
    "seed": as_any(0, 200),
    "repetition_penalty": as_real(0.5, 2.0),
    "stop_tokens": st.lists(as_any(0, 200), max_size=3),
    "ignore_eos": st.sampled_from([True, False, np.True_, np.False_]),
    "deadline": as_real(60.0, 120.0),
    "cancel": st.just(threading.Event()),
    "skip_special_tokens": st.sampled_from([True, np.False_]),
}
"""What a field takes, nearly always; written down apart from the check itself."""


USUAL = st.fixed_dictionaries(
    {},
    optional={
        name: right
        for name, right in RIGHT.items()
        if name not in ("prompt", "images", "video", "encoded", "kept", "rank_by")
    },
)
ANY_RIGHT = st.sampled_from(sorted(RIGHT)).flatmap(
    lambda name: RIGHT[name].map(lambda value: {name: value})
)
ANY_ODD = st.dictionaries(st.sampled_from(sorted(RIGHT)), ODDS, max_size=1)
REQUESTS = st.builds(lambda *parts: {**parts[0], **parts[1], **parts[2]}, USUAL, ANY_RIGHT, ANY_ODD)


def plain(value: Any) -> Any:
    """A value without numpy's types and fractions."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Fraction):
        return float(value)
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle.root, device="cpu") as pipeline:
        yield pipeline


def test_requests(pipe: Pipeline) -> None:
    outcomes: Counter[str] = Counter()

    @FIXED
    @given(REQUESTS)
    def ask(fields: dict[str, Any]) -> None:
        request: dict[str, Any] = {"prompt": "What?", "max_new_tokens": 1, "seed": 3, **fields}
        if "video" not in request:
            request.setdefault("images", [SMALL])
        try:
            answer = pipe.generate(**request)
        except FoveateError as error:
            assert str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
            return
        outcomes["answered"] += 1
        same = pipe.generate(**{name: plain(value) for name, value in request.items()})
        assert answer.token_ids == same.token_ids
        assert (answer.text, answer.finish_reason) == (same.text, same.finish_reason)
        assert answer.visual.indices.tolist() == same.visual.indices.tolist()
        (batched,) = pipe.generate_batch([Request(**request)])
        assert batched.token_ids == same.token_ids

    ask()
    assert min(outcomes["answered"], outcomes["refused"]) >= 30


def test_the_fuzz_knows_every_field() -> None:
    assert list(RIGHT) == [field.name for field in dataclasses.fields(Request)]


@FIXED
@given(st.sampled_from(sorted(LOADING)), ODDS)
def test_arguments_of_loading(name: str, value: Any) -> None:
    try:
        checked = check_loading(**{name: value})[name]
    except FoveateError as error:
        assert name in str(error) and "\n" not in str(error)
        return
    assert checked == plain(value) and type(checked) in (str, int, bool, type(None))
    assert not isinstance(value, (Decimal, Path))


@FIXED
@given(ODDS)
def test_batches(pipe: Pipeline, requests: Any) -> None:
    try:
        assert pipe.generate_batch(requests) == []
    except FoveateError:
        return
    assert len(requests) == 0
