"""Several requests at once: what each gets is what it gets alone."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline, Request
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, ImageError, KeepError, LimitError
from foveate.runtime.language.static_decoder import StaticDecoder
from foveate.runtime.request import Options
from tests.conftest import Sample
from tests.runtime.prompts import generation, kept_prompt, row
from tests.runtime.watched import graph_of, grids

LOGITS = 1e-4
"""Absolute, on logits of magnitude 20: float32 sums in another order, and positions moved alike."""

LONGER = "Describe the picture. Say which letters, which colours and which shapes there are in it."


@pytest.fixture(scope="module")
def pipes(nano_bundle: Bundle, contrib_bundle: Bundle) -> Iterator[dict[str, Pipeline]]:
    with (
        Pipeline.load(nano_bundle.root, device="cpu") as standard,
        Pipeline.load(contrib_bundle.root, device="cpu") as contrib,
    ):
        yield {"standard": standard, "contrib": contrib}


@pytest.fixture(params=["standard", "contrib"])
def pipe(pipes: dict[str, Pipeline], request: pytest.FixtureRequest) -> Pipeline:
    """The same model in graphs of either operators."""
    return pipes[request.param]


@pytest.fixture(scope="module")
def asked(samples: list[Sample]) -> list[dict[str, Any]]:
    """Requests that have nothing in common but the model."""
    pictures = [Image.open(one.image).convert("RGB") for one in samples[:40:10]]
    frames = [np.asarray(one.resize((168, 140))) for one in pictures]
    return [
        {"prompt": "Describe the picture.", "images": pictures[:1], "keep": 1.0},
        {"prompt": samples[3].question, "images": [samples[3].image], "keep": 0.25},
        {"prompt": LONGER, "images": pictures[1:2], "keep": 0.1, "max_new_tokens": 9},
        {"prompt": "Describe the picture.", "images": pictures[1:3], "keep": 60},
        {"prompt": LONGER, "video": frames, "keep": 0.5, "max_new_tokens": 1},
        {"prompt": "Describe it.", "images": pictures[2:3], "max_new_tokens": 12,
         "temperature": 3.0, "top_k": 50, "seed": 7},
        {"prompt": "Describe it.", "images": pictures[2:3], "max_new_tokens": 15,
         "ignore_eos": True, "temperature": 1.0, "top_p": 0.9, "seed": 8},
    ]  # fmt: skip


def test_answers_are_those_of_requests_asked_alone(
    pipe: Pipeline, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows end at a stop token, at different limits, at once; some are sampled. Prompts in rows of a fixed
    cache are padded, as they are on CUDA."""
    first = pipe.generate(**asked[0])
    stop = first.token_ids[5]
    requests = [
        *asked,
        {**asked[0], "stop_tokens": [stop]},
        {**asked[0], "stop_tokens": first.token_ids[:1]},
    ]
    alone = [pipe.generate(**one) for one in requests]
    if isinstance(graph_of(pipe), StaticDecoder):
        monkeypatch.setattr(graph_of(pipe).engine, "captures", True)
    together = pipe.generate_batch(Request(**one) for one in requests)
    for given, wanted in zip(together, alone, strict=True):
        assert given.token_ids == wanted.token_ids
        assert (given.text, given.finish_reason) == (wanted.text, wanted.finish_reason)
        assert given.prompt_tokens == wanted.prompt_tokens
        assert given.cache_bytes == wanted.cache_bytes
        assert grids(given.visual) == grids(wanted.visual)
        assert np.array_equal(given.visual.indices, wanted.visual.indices)
        assert (given.visual.relevance is None) == (wanted.visual.relevance is None)
    assert {one.finish_reason for one in together} == {"stop", "length"}
    assert len({len(one.token_ids) for one in together}) > 5
    assert together[-1].token_ids == []


def test_timing_of_a_batch(pipe: Pipeline, asked: list[dict[str, Any]]) -> None:
    """First tokens come one after the other, and every step counts for all that took part in it."""
    request = Request(**{**asked[0], "max_new_tokens": 4, "ignore_eos": True})
    timings = [one.timing for one in pipe.generate_batch([request] * 3)]
    firsts = [one.first_token for one in timings]
    assert firsts == sorted(firsts)
    assert len({one.decode for one in timings}) == 1
    for one in timings:
        assert min(one.preprocess, one.vision, one.prefill, one.decode) > 0
        assert firsts[-1] + one.decode <= one.total


def test_logits_of_a_step_are_those_of_single_steps(pipe: Pipeline) -> None:
    """Prompts of other lengths and positions, one with less behind it than it is long, and a row that ends."""
    graph, random = graph_of(pipe), np.random.default_rng(0)
    width = pipe.bundle.manifest.model.hidden_size
    shapes = [(30, 30), (7, 40), (61, 12), (18, 90)]
    prompts = []
    for number, (count, after) in enumerate(shapes):
        places = np.sort(random.integers(0, after, (3, 1, count)), axis=-1)
        prompts.append(kept_prompt(count, width, number, places, after))
    settings = [generation(count, count + 3, after) for count, after in shapes]
    together, alone = graph.allocate(settings), [graph.allocate([one]) for one in settings]
    for number, (one, prompt) in enumerate(zip(alone, prompts, strict=True)):
        given, wanted = together.prefill(number, prompt), one.prefill(0, prompt)
        np.testing.assert_allclose(given.logits(), wanted.logits(), atol=LOGITS, rtol=0)
    for number, going in enumerate([(0, 1, 2, 3), (0, 1, 3), (1,)]):
        tokens = {place: (5 + 3 * place + number, shapes[place][1] + number) for place in going}
        found = together.decode(tokens)
        assert list(found) == list(going)
        for place, token in tokens.items():
            following = alone[place].decode(row(*token))[0]
            logits = following.logits()
            np.testing.assert_allclose(found[place].logits(), logits, atol=LOGITS, rtol=0)
            assert found[place].argmax() == following.argmax() == logits.argmax()
            assert np.abs(logits).max() > 5
            assert together.lengths[place] == alone[place].lengths[0]
            assert together.nbytes(place) == alone[place].nbytes(0)
    for place in (*range(4), *range(4)):
        together.release(place)
        alone[place].release(0)


def test_what_is_wrong_with_a_request_is_said_before_anything_runs(
    pipe: Pipeline, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe._backend, "encode", None)
    for change, error, said in (
        ({"keep": 10**6}, KeepError, r"requests\[2\]: keep is 1000000 tokens"),
        ({"images": []}, ImageError, r"requests\[2\]: no picture"),
        ({"max_new_tokens": 10**6}, LimitError, r"requests\[2\]: the kept prompt"),
    ):
        requests = [*asked[:2], {**asked[2], **change}]
        with pytest.raises(error, match=said):
            pipe.generate_batch([Request(**one) for one in requests])
    assert pipe.generate_batch([]) == []
    with pytest.raises(TypeError, match="kep"):
        pipe.stream("Describe it.", kep=1.0)


def test_what_fails_on_the_way_leaves_no_cache_taken(
    pipes: dict[str, Pipeline], asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipes["contrib"]
    pool = graph_of(pipe).pool
    request = Request(**asked[1])
    pipe.generate_batch([request] * 2)
    spare = list(pool._spare)

    def fail(*_: object) -> None:
        raise BackendError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(pipe._backend, "compress", fail)
        with pytest.raises(BackendError, match=r"requests\[0\]: no memory"):
            pipe.generate_batch([request] * 2)
    assert [one.rows for one in pool._spare] == [one.rows for one in spare]


def test_a_language_model_of_one_sequence_refuses_more(
    pipe: Pipeline, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = dataclasses.replace(pipe._language.capabilities, batch=1)
    monkeypatch.setattr(pipe._language, "capabilities", one)
    with pytest.raises(BackendError, match=r"decodes 1 together.*backend='onnxruntime'"):
        pipe.generate_batch([Request("no pictures")] * 2)
    (given,) = pipe.generate_batch([Request(**asked[0])])
    assert given.token_ids == pipe.generate(**asked[0]).token_ids


def test_options_by_name_are_the_fields_of_a_request() -> None:
    named = {field.name for field in dataclasses.fields(Request)} - {"prompt"}
    assert Options.__annotations__.keys() == named
    with pytest.raises(TypeError, match="colour"):
        Request("What?", colour="red")  # type: ignore[call-arg]
