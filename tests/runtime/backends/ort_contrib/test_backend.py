"""Graphs of onnxruntime's own operators: the same answers, in memory that stays where it is."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from foveate import Pipeline
from foveate.bundle.manifest import Precision
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, ClosedError
from foveate.families.base import user_turn
from foveate.runtime.backends import open_backend
from foveate.runtime.backends.ort_contrib import backend as contrib
from foveate.runtime.backends.ort_contrib.backend import TEXT, ContribBackend
from foveate.runtime.backends.ort_contrib.compressor_inputs import compressor_inputs
from foveate.runtime.backends.ort_contrib.decoder import STEP
from foveate.runtime.keep import select
from foveate.runtime.tensors import on_host, wait
from tests.conftest import NANO, Sample
from tests.runtime.prompts import kept_prompt, room_for
from tests.runtime.watched import graph_of, grids

RELEVANCE = 1e-4
"""Relative: float32 sums in another order, through the vision tower and the probe."""


@pytest.fixture(scope="module")
def standard(nano_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(nano_bundle.root, device="cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def pipe(contrib_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(contrib_bundle.root, device="cpu") as pipeline:
        yield pipeline


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.25])
def test_answers_are_those_of_the_standard_operators(
    pipe: Pipeline, standard: Pipeline, samples: list[Sample], keep: float
) -> None:
    for sample in samples[::16]:
        pictures = [Image.open(sample.image)]
        given = pipe.generate(sample.question, images=pictures, keep=keep)
        wanted = standard.generate(sample.question, images=pictures, keep=keep)
        assert given.token_ids == wanted.token_ids
        assert np.array_equal(given.visual.indices, wanted.visual.indices)
        assert given.cache_bytes == wanted.cache_bytes
        if keep < 1:
            np.testing.assert_allclose(
                given.visual.relevance, wanted.visual.relevance, rtol=RELEVANCE, atol=1e-7
            )


def test_several_unequal_pictures(
    pipe: Pipeline, standard: Pipeline, samples: list[Sample]
) -> None:
    picture = Image.open(samples[0].image)
    pictures = [picture, picture.resize((180, 300)), picture.crop((0, 0, 200, 120))]
    for keep in (1.0, 0.3):
        given = pipe.generate(samples[0].question, images=pictures, keep=keep)
        wanted = standard.generate(samples[0].question, images=pictures, keep=keep)
        assert given.token_ids == wanted.token_ids
        assert np.array_equal(given.visual.indices, wanted.visual.indices)


def test_a_video(pipe: Pipeline, standard: Pipeline, samples: list[Sample]) -> None:
    frames = [np.asarray(Image.open(one.image).resize((168, 140))) for one in samples[:15:3]]
    for keep in (1.0, 0.3):
        given = pipe.generate(samples[0].question, video=frames, keep=keep)
        wanted = standard.generate(samples[0].question, video=frames, keep=keep)
        shown = grids(given.visual)
        assert shown == grids(wanted.visual)
        assert shown == [(number, *shown[0][1:]) for number in (0, 2, 4)]
        assert given.token_ids == wanted.token_ids
        assert np.array_equal(given.visual.indices, wanted.visual.indices)


def test_threads_do_not_share_memory(pipe: Pipeline, samples: list[Sample]) -> None:
    chosen = samples[:40:10]
    alone = [pipe.generate(one.question, images=[one.image], keep=0.25).token_ids for one in chosen]
    found: dict[int, list[list[int]]] = {}

    def ask(number: int) -> None:
        one = chosen[number]
        found[number] = [
            pipe.generate(one.question, images=[one.image], keep=0.25).token_ids for _ in range(3)
        ]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(chosen))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [alone[number]] * 3 for number in range(len(chosen))}


def test_a_padded_question_keeps_what_a_bare_one_keeps(
    pipe: Pipeline, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding stands after the prompt and counts nothing in the mean; kept prompts are padded too."""
    chosen = samples[3::20]

    def ask() -> list[Any]:
        """Answers with a quarter kept."""
        return [pipe.generate(one.question, images=[one.image], keep=0.25) for one in chosen]

    bare = ask()
    monkeypatch.setattr(
        contrib, "compressor_inputs", lambda *inputs: compressor_inputs(*inputs[:-1], TEXT)
    )
    monkeypatch.setattr(graph_of(pipe).engine, "captures", True)
    for given, wanted in zip(ask(), bare, strict=True):
        assert given.token_ids == wanted.token_ids
        assert given.cache_bytes == wanted.cache_bytes
        assert np.array_equal(given.visual.indices, wanted.visual.indices)
        np.testing.assert_allclose(given.visual.relevance, wanted.visual.relevance, rtol=RELEVANCE)


def test_work_is_enqueued_and_waited_for_when_it_is_read(
    pipe: Pipeline, standard: Pipeline, samples: list[Sample]
) -> None:
    """Text is staged after pictures are begun; what is refused there leaves the backend as it was."""
    pictures = [Image.open(samples[0].image)] * 2
    for pipeline in (pipe, standard):
        backend, family = pipeline._backend, pipeline._family
        visual = family.prepare(pictures)
        prompt = family.layout(user_turn(samples[0].question, pictures), visual)
        embeds = backend.encode(visual)
        staged = backend.stage(prompt, select(visual, 9))
        wait(embeds)
        encoded = on_host(embeds).copy()
        assert encoded.shape[0] == visual.tokens
        kept = backend.compress(embeds, staged)
        indices = kept.selection().indices
        odd = dataclasses.replace(prompt, token_ids=prompt.token_ids + 10**6)
        with pytest.raises(BackendError, match="outside the table"):
            backend.stage(odd, select(visual, 9))
        again = backend.encode(visual)
        assert np.array_equal(on_host(again), encoded)
        kept = backend.compress(again, backend.stage(prompt, select(visual, 9)))
        assert np.array_equal(kept.selection().indices, indices)

        width = pipeline.bundle.manifest.model.hidden_size
        graph, short = graph_of(pipeline), kept_prompt(3, width)
        following = graph.allocate(room_for(STEP)).prefill(0, short)
        logits = following.logits()
        again = graph.allocate(room_for(STEP)).prefill(0, short)
        assert np.array_equal(again.logits(), logits)
        assert following.argmax() == logits.argmax()


def test_memory_grows_and_calls_that_used_it_are_forgotten(
    contrib_bundle: Bundle, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = {"images": [samples[0].image], "keep": 0.25}
    with Pipeline.load(contrib_bundle.root, device="cpu") as pipeline:
        backend = pipeline._backend
        assert isinstance(backend, ContribBackend)
        wanted = pipeline.generate(samples[0].question, **question)  # type: ignore[arg-type]
        engines = [backend.engines[role] for role in ("compressor", "decoder")]
        for engine in engines:
            monkeypatch.setattr(engine, "captures", True)
        sizes = (1, 9, pipeline.bundle.manifest.model.hidden_size)
        for room in (1024, 2048):
            for _ in range(4):
                given = pipeline.generate(samples[0].question, **question)  # type: ignore[arg-type]
                assert given.token_ids == wanted.token_ids
            assert all(len(engine.graphs) for engine in engines)
            small = backend._memory("prompt", sizes, "float32")
            assert small is backend._memory("prompt", sizes, "float32")
            assert small.room == room * sizes[2]
            backend._memory("prompt", (1, room + 1, sizes[2]), "float32")
            assert not any(len(engine.graphs) for engine in engines)
            assert small is not backend._memory("prompt", sizes, "float32")


def test_a_closed_pipeline_is_refused(contrib_bundle: Bundle, samples: list[Sample]) -> None:
    pipeline = Pipeline.load(contrib_bundle.root, device="cpu")
    backend = pipeline._backend
    visual = pipeline._family.prepare([Image.open(samples[0].image)])
    pipeline.close()
    with pytest.raises(ClosedError):
        backend.encode(visual)


def test_a_half_precision_bundle_is_for_a_gpu(tmp_path: Path) -> None:
    from tests.exported import export_nano

    f_theta = NANO / "f_theta.safetensors"
    written = export_nano(
        tmp_path / "bundle", compressor=f_theta, precision="fp16", operators="contrib"
    )
    assert written.manifest.operators == "contrib"
    assert max(written.manifest.parity.values()) < 0.01
    with pytest.raises(BackendError, match="fp32 on the CPU"):
        Pipeline.load(written.root, device="cpu")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precisions_that_the_device_has_no_kernels_for(
    contrib_bundle: Bundle, precision: Precision
) -> None:
    other = replace(contrib_bundle.manifest, precision=precision)
    with pytest.raises(BackendError, match=rf"graphs are {precision}.*fp32 on the CPU"):
        open_backend(Bundle(contrib_bundle.root, other), device="cpu")
