"""Several requests at once: what each gets is what it gets alone."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from foveate import Pipeline, Request
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, ClosedError, ImageError, KeepError, LimitError
from foveate.export.exporter import ExportOptions, export
from foveate.runtime.backends.trt.backend import TensorRTBackend
from foveate.runtime.language.base import Alone, Batch, Extent
from foveate.runtime.language.static_decoder import SPARE, STEP, Cache, SharedDecoder
from foveate.runtime.request import Options
from tests.conftest import NANO, Sample

LOGITS = 1e-4
"""Absolute, on logits of magnitude 20: float32 sums in another order, and positions moved alike."""

LONGER = "Describe the picture. Say which letters, which colours and which shapes there are in it."


@pytest.fixture(scope="module")
def pipes(nano_bundle: Bundle, fused_bundle: Bundle) -> Iterator[dict[str, Pipeline]]:
    with (
        Pipeline.load(nano_bundle.root, device="cpu") as standard,
        Pipeline.load(fused_bundle.root, device="cpu") as fused,
    ):
        yield {"standard": standard, "onnxruntime": fused}


@pytest.fixture(params=["standard", "onnxruntime"])
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
    cache are filled up, as they are on CUDA."""
    first = pipe.generate(**asked[0])
    stop = first.token_ids[5]
    requests = [
        *asked,
        {**asked[0], "stop_tokens": [stop]},
        {**asked[0], "stop_tokens": first.token_ids[:1]},
    ]
    alone = [pipe.generate(**one) for one in requests]
    decoder = pipe._backend._decoder  # type: ignore[attr-defined]
    if isinstance(decoder, SharedDecoder):
        monkeypatch.setattr(decoder, "pads", True)
    together = pipe.generate_batch(Request(**one) for one in requests)
    for given, wanted in zip(together, alone, strict=True):
        assert given.token_ids == wanted.token_ids
        assert (given.text, given.finish_reason) == (wanted.text, wanted.finish_reason)
        assert given.prompt_tokens == wanted.prompt_tokens
        assert given.cache_bytes == wanted.cache_bytes
        assert given.visual.grids == wanted.visual.grids
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
    backend, random = pipe._backend, np.random.default_rng(0)
    width = pipe.bundle.manifest.model.hidden_size
    shapes = [(30, 30), (7, 40), (61, 12), (18, 90)]
    prompts = []
    for count, after in shapes:
        embeds = random.standard_normal((1, count, width)).astype(np.float32)
        places = np.sort(random.integers(0, after, (3, 1, count)), axis=-1)
        prompts.append((embeds, places, count))
    batch = backend.start_batch([Extent(count, count + 3, after) for count, after in shapes])
    alone = [backend.start(count + 3) for count, _ in shapes]
    for one, row, prompt in zip(alone, batch.rows, prompts, strict=True):
        np.testing.assert_allclose(
            row.extend(*prompt).logits(), one.extend(*prompt).logits(), atol=LOGITS, rtol=0
        )
    for number, going in enumerate([(0, 1, 2, 3), (0, 1, 3), (1,)]):
        tokens = {row: (5 + 3 * row + number, shapes[row][1] + number) for row in going}
        found = batch.step(tokens)
        assert list(found) == list(going)
        for row, token in tokens.items():
            following = alone[row].step(*token)
            wanted = following.logits()
            np.testing.assert_allclose(found[row].logits(), wanted, atol=LOGITS, rtol=0)
            assert found[row].best() == following.best() == wanted.argmax()
            assert np.abs(wanted).max() > 5
            assert batch.rows[row].length == alone[row].length
    batch.close()
    batch.close()


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
    pipe = pipes["onnxruntime"]
    decoder = shared(pipe)
    request = Request(**asked[1])
    pipe.generate_batch([request] * 2)
    spare = list(decoder.spare)

    def fail(*_: object) -> None:
        raise BackendError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(pipe, "_compress", fail)
        with pytest.raises(BackendError, match=r"requests\[0\]: no memory"):
            pipe.generate_batch([request] * 2)
    assert [one.rows for one in decoder.spare] == [one.rows for one in spare]


def test_a_backend_of_one_sequence_refuses_more(
    pipe: Pipeline, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TensorRTBackend.batch == 1
    backend = pipe._backend

    def start_batch(extents: list[Extent]) -> Batch:
        (extent,) = extents
        return Alone(backend.start(extent.capacity))

    monkeypatch.setattr(backend, "batch", 1)
    monkeypatch.setattr(backend, "start_batch", start_batch)
    with pytest.raises(BackendError, match=r"decodes 1 together.*backend='onnxruntime'"):
        pipe.generate_batch([Request("no pictures")] * 2)
    (given,) = pipe.generate_batch([Request(**asked[0])])
    assert given.token_ids == pipe.generate(**asked[0]).token_ids


def test_spare_caches_have_as_many_rows(pipes: dict[str, Pipeline]) -> None:
    decoder = shared(pipes["onnxruntime"])
    decoder.spare.clear()
    extents = [Extent(9, STEP - 1, 9)] * 3
    taken = [decoder.take(1, STEP * size) for size in (1, 2, 3)] + [decoder.take(3, STEP)]
    for cache in taken:
        decoder.give_back(cache)
    assert [(one.rows, one.capacity // STEP) for one in decoder.spare] == [(3, 1), (1, 2), (1, 3)]
    batch = decoder.start_batch(extents)
    assert batch.cache is taken[-1]
    batch.rows[0].close()
    with pytest.raises(ClosedError, match="closed"):
        batch.step({0: (1, 9)})
    with pytest.raises(LimitError, match="positions"):
        batch.step({1: (1, 9), 2: (1, 10)})
    assert taken[-1] not in decoder.spare
    batch.close()
    assert taken[-1] in decoder.spare
    assert len(decoder.spare) == SPARE + 1


def test_spare_caches_make_room(
    pipes: dict[str, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = shared(pipes["onnxruntime"])
    decoder.give_back(decoder.take(2, STEP))
    make, tried = decoder.make, []

    def scarce(rows: int, capacity: int) -> Cache:
        tried.append(len(decoder.spare))
        if decoder.spare:
            raise BackendError("no memory")
        return make(rows, capacity)

    monkeypatch.setattr(decoder, "make", scarce)
    assert decoder.take(4, STEP + 1).states["0.key"].sizes[:3:2] == (4, 2 * STEP)
    assert tried[0] > tried[1] == 0


def test_a_closed_pipeline_answers_no_batch(nano_bundle: Bundle) -> None:
    pipe = Pipeline.load(nano_bundle.root, device="cpu")
    pipe.close()
    with pytest.raises(ClosedError):
        pipe.generate_batch([Request("Where is it?")])


def shared(pipe: Pipeline) -> SharedDecoder:
    """The decoder that keeps spare caches."""
    decoder = pipe._backend._decoder  # type: ignore[attr-defined]
    assert isinstance(decoder, SharedDecoder)
    return decoder


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="this onnxruntime has no CUDA",
)
def test_batches_on_a_gpu(
    tmp_path: Path, pipes: dict[str, Pipeline], samples: list[Sample]
) -> None:
    """fp16 against fp32: nano's answers are one clear token each; later calls replay graphs alone."""
    options = ExportOptions(precision="fp16", operators="onnxruntime")
    written = export(NANO, tmp_path / "bundle", options)
    requests = [
        Request(sample.question, images=[sample.image], keep=keep)
        for sample in samples[::20]
        for keep in (1.0, 0.5, 0.25)
    ]
    wanted = [one.text for one in pipes["standard"].generate_batch(requests)]
    with Pipeline.load(written.root, device="cuda") as pipeline:
        for _ in range(4):
            assert [one.text for one in pipeline.generate_batch(requests)] == wanted
        describe = Request("Describe the picture.", images=[samples[0].image], keep=1.0)
        (alone,) = pipeline.generate_batch([describe])
        for one in pipeline.generate_batch([describe] * 5):
            assert one.token_ids == alone.token_ids


def test_options_by_name_are_the_fields_of_a_request() -> None:
    named = {field.name for field in dataclasses.fields(Request)} - {"prompt"}
    assert Options.__annotations__.keys() == named
    with pytest.raises(TypeError, match="colour"):
        Request("What?", colour="red")  # type: ignore[call-arg]
