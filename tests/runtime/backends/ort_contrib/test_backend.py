"""Graphs of onnxruntime's own operators: the same answers, in memory that stays where it is."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, ClosedError, LimitError
from foveate.export.exporter import ExportOptions, export
from foveate.runtime.backends.ort.session import OnnxOptions
from foveate.runtime.backends.ort_contrib import backend as contrib
from foveate.runtime.backends.ort_contrib.backend import TEXT, FusedBackend
from foveate.runtime.backends.ort_contrib.compressor_inputs import arrange
from foveate.runtime.backends.ort_contrib.io_binding import BoundEngine, BoundTensor
from foveate.runtime.language.static_decoder import PROMPT, STEP, Positions, filled
from tests.conftest import NANO, Sample

RELEVANCE = 1e-4
"""Relative: float32 sums in another order, through the vision tower and the probe."""

LOGITS = 1e-4
"""Absolute, on logits of magnitude 20: float32 sums in another order through ten layers."""

cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="this onnxruntime has no CUDA",
)


@pytest.fixture(scope="module")
def standard(nano_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(nano_bundle.root, device="cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def pipe(fused_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(fused_bundle.root, device="cpu") as pipeline:
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
        assert given.visual.grids == wanted.visual.grids == ((3, *given.visual.grids[0][1:]),)
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


def test_a_padded_prompt_gives_the_logits_of_a_bare_one(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pads a bucket stands after the prompt, so nothing in the prompt sees it."""
    backend = pipe._backend
    assert isinstance(backend, FusedBackend)
    monkeypatch.setattr(backend._decoder, "pads", True)
    count, width = PROMPT + 3, pipe.bundle.manifest.model.hidden_size
    rows = np.random.default_rng(0).standard_normal((1, count, width)).astype(np.float32)
    places = np.tile(np.arange(count), (3, 1, 1))
    roomy = BoundTensor.zeros((1, 2 * PROMPT, width), "float32", "cpu")
    roomy.memory.numpy()[:] = 7.0
    roomy.memory.numpy()[:, :count] = rows
    slots = BoundTensor.zeros((2 * PROMPT, 3), "int64", "cpu")
    slots.memory.numpy()[:] = 99
    slots.memory.numpy()[:count] = places[:, 0].T
    held = Positions(slots.viewed((count, 3)))
    assert np.array_equal(held.numpy(), places) and held.shape() == list(places.shape)
    logits = []
    for embeds, positions in (
        (rows, places),
        (roomy.viewed((1, count, width)), places),
        (roomy.viewed((1, count, width)), held),
    ):
        sequence = backend.start(2 * STEP)
        first = sequence.extend(embeds, positions, count)
        said = [first.logits(), sequence.step(5, count).logits()]
        logits += [[*said, sequence.step(9, count + 1).logits()]]
        assert sequence.length == count + 2
        sequence.close()
    assert filled(count) == 2 * PROMPT
    lengths = [backend._decoder.run_as(count) for count in (1342, 300, 1342, 300, 300, 1342, 1342)]
    assert lengths == [1344, 384, 1344, 384, 384, 1342, 1342]
    np.testing.assert_allclose(logits[1], logits[0], atol=LOGITS, rtol=0)
    assert np.array_equal(logits[2], logits[1])


def test_a_filled_up_question_keeps_what_a_bare_one_keeps(
    pipe: Pipeline, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fills up stands after the prompt and counts nothing in the mean; kept prompts are padded too."""
    chosen = samples[3::20]

    def ask() -> list[Any]:
        """Answers with a quarter kept."""
        return [pipe.generate(one.question, images=[one.image], keep=0.25) for one in chosen]

    bare = ask()
    monkeypatch.setattr(contrib, "arrange", lambda feeds, unit: arrange(feeds, TEXT))
    monkeypatch.setattr(pipe._backend._decoder, "pads", True)  # type: ignore[attr-defined]
    for given, wanted in zip(ask(), bare, strict=True):
        assert given.token_ids == wanted.token_ids
        assert given.cache_bytes == wanted.cache_bytes
        assert np.array_equal(given.visual.indices, wanted.visual.indices)
        np.testing.assert_allclose(given.visual.relevance, wanted.visual.relevance, rtol=RELEVANCE)


def test_the_host_works_once_while_pictures_are_encoded(
    pipe: Pipeline, standard: Pipeline, samples: list[Sample]
) -> None:
    pictures = [Image.open(samples[0].image)] * 2
    for pipeline in (pipe, standard):
        backend, family = pipeline._backend, pipeline._family
        prepare = family.levels if pipeline is pipe else family.preprocess
        done: list[int] = []
        vision = prepare(pictures)
        encoded = backend.encode(vision, lambda done=done: done.append(1)).numpy()  # type: ignore[misc]
        assert (encoded.shape[0], done) == (vision.tokens, [1])

        def fail() -> None:
            """Refuse."""
            raise LimitError("no room")

        with pytest.raises(LimitError, match="no room"):
            backend.encode(vision, fail)
        assert np.array_equal(backend.encode(vision).numpy(), encoded)

        width = pipeline.bundle.manifest.model.hidden_size
        prompt = np.zeros((1, 3, width), np.float32), np.zeros((3, 1, 3), np.int64), 3
        sequence = backend.start(STEP)
        following = sequence.extend(*prompt, lambda done=done: done.append(2))  # type: ignore[misc]
        logits = following.logits()
        assert np.array_equal(backend.start(STEP).extend(*prompt).logits(), logits)
        assert following.best() == logits.argmax()
        assert done == [1, 2]
        with pytest.raises(LimitError, match="no room"):
            backend.start(STEP).extend(*prompt, fail)


def test_a_call_runs_once_also_when_it_is_recorded(fused_bundle: Bundle) -> None:
    engine = BoundEngine(fused_bundle.file("merge"), OnnxOptions())
    engine.captures = True
    runs: list[Any] = []
    repeat = engine.repeat
    engine.repeat = lambda *call: runs.append(call) or repeat(*call)  # type: ignore[assignment,func-returns-value]
    width = fused_bundle.manifest.model.hidden_size
    feeds = {
        "text_embeds": np.ones((2, width), np.float32),
        "visual_embeds": np.zeros((1, width), np.float32),
        "order": np.array([0, 2, 1]),
    }
    into = {"inputs_embeds": BoundTensor.zeros((1, 3, width), "float32", "cpu")}
    for number in range(1, 5):
        done: list[int] = []
        engine.run(feeds, {}, into, meanwhile=lambda done=done: done.append(1))  # type: ignore[misc]
        assert (len(runs), len(engine.calls), done) == (number, min(number - 1, 1), [1])


def test_text_and_instruction_are_filled_up_after_the_visual_tokens() -> None:
    feeds = {
        "text_embeds": np.ones((5, 2), np.float32), "text_index": np.array([0, 1, 2, 6, 7]),
        "visual_index": np.array([3, 4, 5]), "instruction_rows": np.array([3, 4]),
        "position_ids": np.arange(24).reshape(3, 8), "keep": np.array([2]),
    }  # fmt: skip
    filled = arrange(feeds, 4)
    assert filled["places"].tolist() == [3, 4, 5, 0, 1, 2, 6, 7, 8, 9, 10]
    assert filled["position_ids"][:, 0].tolist() == [3, 4, 5, 0, 1, 2, 6, 7, 0, 0, 0]
    assert filled["position_ids"][:, 2].tolist() == [19, 20, 21, 16, 17, 18, 22, 23, 0, 0, 0]
    assert filled["text_embeds"].sum(1).tolist() == [2] * 5 + [0] * 3
    assert filled["instruction_rows"].tolist() == [6, 7, 3, 3]
    assert filled["instruction_weights"].tolist() == [0.5, 0.5, 0, 0]
    bare = arrange(feeds, 1)
    assert bare["places"].tolist() == [3, 4, 5, 0, 1, 2, 6, 7]
    assert bare["text_embeds"] is feeds["text_embeds"]


def test_caches_are_used_again_and_no_longer_than_the_model(pipe: Pipeline) -> None:
    backend = pipe._backend
    first = backend.start(STEP)
    memory = first.cache  # type: ignore[attr-defined]
    first.close()
    first.close()
    second = backend.start(STEP - 5)
    assert second.cache is memory  # type: ignore[attr-defined]
    with pytest.raises(ClosedError, match="closed"):
        first.step(1, 1)
    second.close()
    with pytest.raises(LimitError, match="the model takes"):
        backend.start(backend.capacity + 1)


def test_memory_grows_and_calls_that_used_it_are_forgotten(
    fused_bundle: Bundle, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = {"images": [samples[0].image], "keep": 0.25}
    with Pipeline.load(fused_bundle.root, device="cpu") as pipeline:
        backend = pipeline._backend
        assert isinstance(backend, FusedBackend)
        wanted = pipeline.generate(samples[0].question, **question)  # type: ignore[arg-type]
        engines = [backend._engines[role] for role in ("compressor", "decoder")]
        for engine in engines:
            monkeypatch.setattr(engine, "captures", True)
        monkeypatch.setattr(backend._decoder, "pads", True)
        sizes = (1, 9, pipeline.bundle.manifest.model.hidden_size)
        for room in (1024, 2048):
            for _ in range(4):
                given = pipeline.generate(samples[0].question, **question)  # type: ignore[arg-type]
                assert given.token_ids == wanted.token_ids
            assert all(engine.calls for engine in engines)
            small = backend._memory("prompt", sizes, "float32")
            assert small is backend._memory("prompt", sizes, "float32")
            assert small.room == room * sizes[2]
            backend._memory("prompt", (1, room + 1, sizes[2]), "float32")
            assert not any(engine.calls for engine in engines)
            assert small is not backend._memory("prompt", sizes, "float32")


def test_a_closed_pipeline_is_refused(fused_bundle: Bundle, samples: list[Sample]) -> None:
    pipeline = Pipeline.load(fused_bundle.root, device="cpu")
    backend = pipeline._backend
    vision = pipeline._family.levels([Image.open(samples[0].image)])
    pipeline.close()
    with pytest.raises(ClosedError):
        backend.encode(vision)


def test_precisions_that_the_device_has_no_kernels_for(tmp_path: Path) -> None:
    f_theta = NANO / "f_theta.safetensors"
    options = ExportOptions(compressor=f_theta, precision="fp16", operators="onnxruntime")
    written = export(NANO, tmp_path / "bundle", options)
    assert written.manifest.operators == "onnxruntime"
    assert max(written.manifest.parity.values()) < 0.01
    with pytest.raises(BackendError, match="fp32 on the CPU"):
        Pipeline.load(written.root, device="cpu")


def test_views_of_bound_memory() -> None:
    whole = BoundTensor.copied(np.arange(12, dtype=np.int64), "int64", "cpu")
    part = whole.viewed((2, 3), 6)
    assert part.numpy().tolist() == [[6, 7, 8], [9, 10, 11]]
    assert part.address == whole.address + 48
    assert part.room == 6 and part.shape() == [2, 3]
    whole.write(np.arange(12, dtype=np.int64)[::-1])
    assert part.numpy().tolist() == [[5, 4, 3], [2, 1, 0]]


def test_a_graph_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match="cannot open it"):
        BoundEngine(tmp_path / "decoder.onnx", OnnxOptions())


@pytest.mark.gpu
@cuda
def test_answers_on_a_gpu_stay_the_same_once_captured(
    tmp_path: Path, standard: Pipeline, samples: list[Sample]
) -> None:
    """fp16 against fp32: nano's answers are one clear token each; the fifth call replays graphs alone."""
    options = ExportOptions(precision="fp16", operators="onnxruntime")
    written = export(NANO, tmp_path / "bundle", options)
    with Pipeline.load(written.root, device="cuda") as pipeline:
        for sample in samples[::10]:
            for keep in (1.0, 0.5, 0.25):
                wanted = standard.generate(sample.question, images=[sample.image], keep=keep)
                for _ in range(5):
                    given = pipeline.generate(sample.question, images=[sample.image], keep=keep)
                    assert given.text == wanted.text
