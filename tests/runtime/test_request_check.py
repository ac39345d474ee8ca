"""The one check of requests and of loading: numpy's numbers are honoured, other types are refused."""

import dataclasses
import inspect
import math
import threading
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline, Request
from foveate.bundle.reader import Bundle
from foveate.errors import (
    BackendError,
    BundleError,
    FoveateError,
    ImageError,
    KeepError,
    LimitError,
    PromptError,
    RequestError,
    SamplingError,
)
from foveate.runtime.load import read_tokenizer
from foveate.runtime.request import Options
from foveate.runtime.request_check import LOADING, MOST_REQUESTS, REQUEST, check_loading
from foveate.runtime.text_limit import TextLimit
from tests.runtime.media.made import encoded, png_header, smooth

QUESTION = "What letter is in the red square?"
SMALL = smooth(84, 112)
NAN = float("nan")


@pytest.fixture(scope="module")
def pipe(nano_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(nano_bundle.root, device="cpu") as pipeline:
        yield pipeline


def test_every_field_and_argument_has_a_line() -> None:
    fields = [field.name for field in dataclasses.fields(Request)]
    assert list(REQUEST) == fields
    assert set(Options.__annotations__) == set(fields) - {"prompt"}
    arguments = inspect.signature(Pipeline.load).parameters
    assert list(LOADING) == list(arguments)


# Other types

NUMBERS = (
    "0.5",
    Decimal("0.5"),
    [0.5],
    {"a": 1},
    True,
    np.True_,
    1j,
    np.array([1, 2]),
    object(),
)
COUNTS = (2.5, 2.0, NAN, "2", Decimal(2), [2], True, np.False_, np.float64(2), b"2")
LISTS = (5, "E", b"E", ["E"], [2.5], [True], [None], [[1]], [-1], {3: 4}, np.array(3), [NAN], 1.5)
WRONG: list[tuple[str, Any, type[FoveateError]]] = [
    *(("temperature", value, SamplingError) for value in (*NUMBERS, NAN, math.inf, -0.1)),
    *(("top_p", value, SamplingError) for value in (*NUMBERS, NAN, 0, 1.01)),
    *(("repetition_penalty", value, SamplingError) for value in ("1", Decimal(1), [1], True, NAN, 1e9)),
    *(("top_k", value, SamplingError) for value in (*COUNTS, -1)),
    *(("seed", value, SamplingError) for value in (*COUNTS, -1)),
    *(("max_new_tokens", value, LimitError) for value in (*COUNTS, 0, 10**30)),
    *(("stop_tokens", value, SamplingError) for value in (*LISTS, None, [10**9], iter(int, 1))),
    *(("kept", value, KeepError) for value in (*LISTS, [], [10**30], iter(int, 1))),
    *(("ignore_eos", value, SamplingError) for value in (1, 0, "yes", None, [True])),
    *(("keep", value, KeepError) for value in ("0.5", True, Decimal("0.5"), [0.5], NAN, 0, 2.0)),
    *(("prompt", value, PromptError) for value in (5, None, b"What?", ["What?"])),
    *(("rank_by", value, PromptError) for value in (5, b"What?", ["What?"], True)),
    *(("rank", value, KeepError) for value in (None, 5, ["each"], "apart", np.array(["each"]))),
    *(("images", value, ImageError) for value in (5, True, None, {"a": 1}, [5], [None], [["a.png"]])),
    *(("images", value, ImageError) for value in (["a\0b.png"], ["\ud800.png"], np.zeros(3), object())),
    *(("deadline", value, LimitError) for value in (*NUMBERS, NAN, math.inf, 0, -1)),
    *(("cancel", value, LimitError) for value in (5, "now", True, threading.Event)),
    *(("prefix", value, RequestError) for value in (5, "a", {})),
    *(("max_pixels", value, LimitError) for value in (*COUNTS, 0)),
    *(("min_pixels", value, LimitError) for value in (*COUNTS, 0)),
    *(("skip_special_tokens", value, RequestError) for value in (1, "yes", None)),
    *(("encoded", value, ImageError) for value in (5, "a.png", SMALL)),
    *(("video", value, ImageError) for value in (5, SMALL, np.zeros((4, 4)), "no such.gif", {"a": 1})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "error"), WRONG, ids=[f"{field}-{number}" for number, (field, _, _) in enumerate(WRONG)]
)  # fmt: skip
def test_other_types_are_refused_by_name(
    pipe: Pipeline, field: str, value: Any, error: type[FoveateError]
) -> None:
    request = {"prompt": QUESTION, "images": [SMALL], field: value}
    if field == "video":
        del request["images"]
    with pytest.raises(error) as caught:
        pipe.generate(request.pop("prompt"), **request)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    if field not in ("images", "video", "prompt"):
        assert message.startswith(field) or field in ("max_new_tokens", "kept", "stop_tokens")


def test_the_value_is_told(pipe: Pipeline) -> None:
    for value, told in (
        (2.5, "2.5"),
        ("a" * 10**6, "'aaaa"),
        ([2] * 10**6, "[2, 2, 2, 2, 2, 2, ...]"),
    ):
        with pytest.raises(LimitError) as caught:
            pipe.generate(QUESTION, images=[SMALL], max_new_tokens=value)  # type: ignore[arg-type]
        assert str(caught.value).startswith(f"max_new_tokens is {told}")
        assert str(caught.value).endswith("; give a whole number from 1 on, or None")


def test_a_value_that_cannot_be_shown_is_refused_all_the_same(pipe: Pipeline) -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    for value in (Shy(), [Shy()], -(10**5000)):
        with pytest.raises(SamplingError, match=r"^top_k is "):
            pipe.generate(QUESTION, images=[SMALL], top_k=value)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_pythons(pipe: Pipeline) -> None:
    plain: dict[str, Any] = {
        "keep": 0.5, "max_new_tokens": 3, "temperature": 1.5, "top_p": 0.75, "top_k": 40, "seed": 7,
        "repetition_penalty": 1.5, "stop_tokens": [5, 6], "ignore_eos": True,
    }  # fmt: skip
    others: list[dict[str, Any]] = [
        {"keep": np.float32(0.5), "max_new_tokens": np.int8(3), "temperature": np.float16(1.5),
         "top_p": np.float64(0.75), "top_k": np.uint64(40), "seed": np.int64(7),
         "repetition_penalty": np.float32(1.5), "stop_tokens": np.array([5, 6], np.uint16),
         "ignore_eos": np.True_},
        {"keep": Fraction(1, 2), "temperature": Fraction(3, 2), "stop_tokens": iter({6, 5})},
    ]  # fmt: skip
    wanted = pipe.generate(QUESTION, images=[SMALL], **plain)
    for other in others:
        found = pipe.generate(QUESTION, images=[SMALL], **{**plain, **other})
        assert found.token_ids == wanted.token_ids
        assert found.visual.kept == wanted.visual.kept == wanted.visual.total // 2
    assert pipe.generate(QUESTION, images=[SMALL], keep=np.int64(5)).visual.kept == 5
    kept = pipe.generate(QUESTION, images=[SMALL], kept=np.array([3, 1], np.uint8)).visual.indices
    assert kept.tolist() == [1, 3]
    assert pipe.generate(QUESTION, images=[SMALL], keep=1).visual.kept == wanted.visual.total


def test_a_temperature_near_zero_is_greedy(pipe: Pipeline) -> None:
    greedy = pipe.generate(QUESTION, images=[SMALL], max_new_tokens=4).token_ids
    for tiny in (5e-324, 1e-9):
        found = pipe.generate(QUESTION, images=[SMALL], max_new_tokens=4, temperature=tiny, seed=1)
        assert found.token_ids == greedy


def test_what_excludes_each_other_is_refused_before_a_picture_is_opened(pipe: Pipeline) -> None:
    lost: dict[str, Any] = {"images": ["lost.png"]}
    with pytest.raises(KeepError, match="leave out keep and rank_by"):
        pipe.generate(QUESTION, **lost, kept=[1], keep=0.5)
    with pytest.raises(ImageError, match="one or the other"):
        pipe.generate(QUESTION, **lost, video=["lost.png"])
    with pytest.raises(SamplingError, match="top_p is 2"):
        pipe.generate(QUESTION, **lost, top_p=2)
    with pytest.raises(SamplingError, match=r"stop_tokens has 5000 .* end at \d+"):
        pipe.generate(QUESTION, **lost, stop_tokens=[1, 5000])
    with pytest.raises(ImageError, match=r"no file 'lost\.png'"):
        pipe.generate(QUESTION, **lost)


@pytest.mark.parametrize(
    ("requests", "error"),
    [(5, RequestError), (None, RequestError), ("What?", RequestError), (b"x", RequestError),
     (Request("What?"), RequestError), ({"a": 1}, RequestError), (["What?"], RequestError),
     ([None], RequestError), ([{"prompt": "What?"}], RequestError),
     (iter(lambda: Request("What?"), 0), LimitError)],
    ids=range(10),
)  # fmt: skip
def test_batches_that_are_none(pipe: Pipeline, requests: Any, error: type[FoveateError]) -> None:
    with pytest.raises(error):
        pipe.generate_batch(requests)
    assert error is not LimitError or MOST_REQUESTS >= 1024


# Loading


@pytest.mark.parametrize(
    ("change", "error"),
    [({"threads": value}, BackendError) for value in (-1, 1.5, "2", True, None, 10**9, NAN)]
    + [({"device": value}, BackendError) for value in (0, None, ["cpu"], b"cpu", "gpu")]
    + [({"target": value}, BackendError) for value in (5, ["orin"], "orin")]
    + [({name: value}, BackendError) for name in ("backend", "language") for value in (5, None, ["auto"])]
    + [({"checksums": value}, BundleError) for value in (1, "no", None)]
    + [({"max_picture_pixels": value}, LimitError) for value in (0, 1e6, "1", True, None)]
    + [({"path": value}, BundleError) for value in ("", "a\0b", 5, None, ["bundle"], object())],
    ids=str,
)  # fmt: skip
def test_loading_with_other_types_is_refused(
    nano_bundle: Bundle, change: dict[str, Any], error: type[FoveateError]
) -> None:
    arguments: dict[str, Any] = {"path": nano_bundle.root, **change}
    with pytest.raises(error, match=next(iter(change))):
        Pipeline.load(arguments.pop("path"), **arguments)


def test_loading_with_numpys_numbers() -> None:
    plain = check_loading(threads=np.int64(2), checksums=np.False_, path=Path("a"))
    assert plain == {"threads": 2, "checksums": False, "path": "a"}
    assert type(plain["threads"]) is int and plain["checksums"] is False


# Limits before work


def test_a_prompt_is_refused_by_its_length_alone(pipe: Pipeline) -> None:
    limit = pipe.bundle.manifest.limits.prompt_tokens
    for text in ("word " * 10**7, "\ud800" * 10**6):
        for field in ("prompt", "rank_by"):
            request = {"prompt": QUESTION, "images": [SMALL], field: text}
            with pytest.raises(LimitError, match=rf"{len(text)} characters.* {limit} tokens"):
                pipe.generate(request.pop("prompt"), **request)


def test_a_prompt_is_counted_piece_by_piece_where_its_length_says_nothing(
    nano_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.runtime.text_limit.PIECE", 1000)
    most = 2000
    check = TextLimit(read_tokenizer(nano_bundle), most)
    assert len("x. " * 8000) < most * check.longest
    with pytest.raises(LimitError, match=r"the prompt has 24000 characters.*shorten it"):
        check.check(["x. " * 8000])
    with pytest.raises(LimitError, match="the prompt has 24000 characters"):
        check.check(["x. " * 4000] * 2)
    check.check([])
    check.check(["x. " * 400])


def test_pictures_are_counted_by_their_headers(pipe: Pipeline) -> None:
    """None of these can be decoded, so that an error of a limit shows that none was."""
    undecodable = png_header(448, 448)
    most = pipe._backend.visual_tokens // 256
    with pytest.raises(ImageError, match=r"Picture 1: .*cut short or damaged"):
        pipe.generate(QUESTION, images=[undecodable] * most, keep=0.1)
    many = [undecodable] * (most + 1)
    for media in ({"images": many}, {"images": [undecodable] * 200}, {"video": many * 2}):
        with pytest.raises(LimitError, match="visual tokens and"):
            pipe.generate(QUESTION, **media)  # type: ignore[arg-type]
        with pytest.raises(LimitError, match="visual tokens and"):
            pipe.encode(**media)  # type: ignore[arg-type]
    with pytest.raises(LimitError, match=r"^requests\[1\]: .*visual tokens"):
        pipe.generate_batch(
            [Request(QUESTION, images=[undecodable]), Request(QUESTION, images=many)]
        )


@pytest.mark.parametrize("field", ["images", "video"])
def test_endless_pictures_are_refused(pipe: Pipeline, field: str) -> None:
    made = 0

    def endless() -> Iterator[Any]:
        nonlocal made
        while True:
            made += 1
            yield np.zeros((448, 448, 3), np.uint8)

    with pytest.raises(LimitError, match="visual tokens"):
        pipe.generate(QUESTION, **{field: endless()})  # type: ignore[arg-type]
    assert made <= 4 * pipe._backend.visual_tokens // 256


def test_the_pixel_limit_is_an_option_of_loading(nano_bundle: Bundle) -> None:
    bomb = png_header(20_000, 20_000)
    sources = (encoded(SMALL), SMALL, np.asarray(SMALL))
    with Pipeline.load(nano_bundle.root, device="cpu", max_picture_pixels=112 * 84) as pipe:
        for source in sources:
            pipe.generate(QUESTION, images=[source], max_new_tokens=1)
    with Pipeline.load(nano_bundle.root, device="cpu", max_picture_pixels=112 * 84 - 1) as pipe:
        for source in (*sources, bomb):
            for asked in ({"images": [source]}, {"video": [source]}):
                with pytest.raises(ImageError, match=r"limit of 9407; .*max_picture_pixels"):
                    pipe.generate(QUESTION, **asked)  # type: ignore[arg-type]


def test_too_little_memory_is_told(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", fail)
        with pytest.raises(
            BackendError, match="not enough memory to prepare pictures of 70 visual"
        ):
            pipe.generate(QUESTION, images=[SMALL])
