"""The decoders of TensorRT's two forms, with CUDA and TensorRT acted out by onnxruntime in host memory."""

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from foveate import Pipeline, Request
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, ClosedError, LimitError
from foveate.export.tensorrt.static import static_graph
from foveate.export.tensorrt.targets import Ranges
from foveate.runtime.backends import open_backend
from foveate.runtime.backends.trt.decoder import DoubleBufferDecoder, WriteIndexDecoder
from foveate.runtime.backends.trt.engine import TensorRTEngine
from foveate.runtime.backends.trt.tensor_specs import WRITE_INDICES
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.cache_pool import SPARE
from foveate.runtime.language.static_decoder import StaticCache, StaticDecoder
from tests.conftest import Sample
from tests.runtime.backends.trt.engines import variants
from tests.runtime.backends.trt.hosted import RANGES, Cuda, host_engines, host_pipeline
from tests.runtime.prompts import kept_prompt, room_for, row
from tests.runtime.watched import graph_of

CAPACITY = 40
SMALL = Ranges(
    visual=(4, 8), pictures=(1, 1), text=(4, 8), keep=(4, 8), prompt=(16, 32), cache=(20, CAPACITY)
)  # fmt: skip


def engine_of(bundle: Bundle, decoder: Any) -> TensorRTEngine:
    """A bundle's decoder engine, of a cache of up to 40 tokens, for up to 32 at once."""
    described = variants(bundle, "h100", roles=("decoder",), decoder=decoder, ranges=SMALL)
    graphs = {}
    if decoder == "static":
        graphs["decoder"] = static_graph(bundle.file("decoder"), CAPACITY)
    return host_engines(bundle, described, graphs)["decoder"]


@pytest.fixture
def decoder(tiny_bundle: Bundle) -> StaticDecoder:
    """The tiny bundle's static decoder."""
    model = tiny_bundle.manifest.model
    table = EmbeddingTable(tiny_bundle)
    return WriteIndexDecoder(engine_of(tiny_bundle, "static"), model, table, 4096)


def prompt(decoder: StaticDecoder, count: int, seed: int = 0) -> KeptPrompt:
    """A random prompt for the decoder."""
    return kept_prompt(count, decoder.model.hidden_size, seed)


def engine(decoder: StaticDecoder) -> TensorRTEngine:
    found = decoder.engine
    assert isinstance(found, TensorRTEngine)
    return found


def begin(decoder: StaticDecoder, capacity: int = CAPACITY) -> StaticCache:
    """A cache for one sequence of at most so many tokens."""
    return decoder.allocate(room_for(capacity))


def step(cache: Any, token: int, position: int) -> NDArray[np.float32]:
    """The logits after one more token."""
    logits: NDArray[np.float32] = cache.decode(row(token, position))[0].logits()
    return logits


# Whole answers


@pytest.fixture(
    scope="module", params=[("static", 1), ("static", 2), ("concat", 2)],
    ids=["static, one profile", "static", "concat"],
)  # fmt: skip
def pipe(nano_bundle: Bundle, request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """Nano on engines with a decoder of either kind."""
    with host_pipeline(nano_bundle, *request.param) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def graphs(nano_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(nano_bundle.root, device="cpu", threads=1) as pipeline:
        yield pipeline


def test_answers_are_those_of_the_graphs(
    pipe: Pipeline, graphs: Pipeline, samples: list[Sample]
) -> None:
    for number, sample in enumerate(samples[::9]):
        options: dict[str, Any] = {
            "images": [sample.image], "keep": (1.0, 0.25)[number % 2], "max_new_tokens": 8
        }  # fmt: skip
        wanted = graphs.generate(sample.question, **options, ignore_eos=True)
        found = pipe.generate(sample.question, **options, ignore_eos=True)
        assert found.token_ids == wanted.token_ids, sample.id
        assert np.array_equal(found.visual.indices, wanted.visual.indices)
        assert found.cache_bytes == wanted.cache_bytes
    decoder = graph_of(pipe)
    if isinstance(decoder, StaticDecoder):
        assert engine(decoder).graphs.refusal is None
        assert len(decoder.pool._spare) == 1
        steps = 7 * (number + 1)
        assert engine(decoder).graphs.launched >= steps - 2
    else:
        assert isinstance(decoder, DoubleBufferDecoder)
        assert decoder.engine.graphs.refusal is None
        assert decoder.engine.variant.decoder == "concat"


def test_engines_decode_one_sequence_at_a_time(pipe: Pipeline, samples: list[Sample]) -> None:
    one = Request(samples[0].question, images=[samples[0].image], keep=0.5, max_new_tokens=3)
    assert graph_of(pipe).capabilities.batch == 1
    with pytest.raises(BackendError, match=r"decodes 1 together.*backend='onnxruntime'"):
        pipe.generate_batch([one, one])
    (answer,) = pipe.generate_batch([one])
    alone = pipe.generate(one.prompt, images=one.images, keep=0.5, max_new_tokens=3)
    assert answer.token_ids == alone.token_ids


# Steps


def test_steps_become_one_cuda_graph_and_write_only_small_inputs(decoder: StaticDecoder) -> None:
    cuda: Cuda = engine(decoder).gpu.cuda
    cache, width = begin(decoder), decoder.model.hidden_size
    cache.prefill(0, prompt(decoder, 9)).logits()
    owned = len(engine(decoder).gpu._owned)
    for number in range(12):
        cuda.copies.clear()
        step(cache, number, 9 + number)
        assert sorted(cuda.copies) == sorted([4 * width, 8 * 3, 8])
    assert cuda.launches == [0] * 10
    assert len(engine(decoder).gpu._owned) == owned
    model = decoder.model
    assert cache.nbytes(0) == 21 * 2 * 4 * model.layers * model.kv_heads * model.head_dim


def test_a_step_is_what_taking_the_token_in_is(decoder: StaticDecoder) -> None:
    """Tokens taken in one by one are those of a prompt that holds them."""
    tokens, first = np.arange(5, 10), prompt(decoder, 9)
    stepped = begin(decoder)
    stepped.prefill(0, first)
    for number, token in enumerate(tokens):
        by_step = step(stepped, int(token), 30 + number)
    rows = decoder.table.look_up(tokens)[None]
    places = np.tile(30 + np.arange(5), (3, 1, 1))
    longer = KeptPrompt(
        first.prompt,
        14,
        np.concatenate([first.embeds, rows], axis=1),
        np.concatenate([first.position_ids, places], axis=2),
        np.empty(0, np.int64),
    )
    at_once = begin(decoder).prefill(0, longer).logits()
    assert np.abs(at_once - by_step).max() <= 1e-5 * np.abs(by_step).max()


def test_a_cache_is_used_again_without_what_was_in_it(decoder: StaticDecoder) -> None:
    def answers(cache: StaticCache) -> list[NDArray[np.float32]]:
        """The logits after a prompt and two tokens."""
        first = cache.prefill(0, prompt(decoder, 9)).logits().copy()
        return [first, step(cache, 3, 9).copy(), step(cache, 4, 10).copy()]

    first = begin(decoder, 20)
    wanted = answers(first)
    memory = first.memory
    first.release(0)
    first.release(0)
    for state in memory.states.values():
        state.write(np.full(state.shape, np.nan, np.float32))
    again = begin(decoder, 20)
    assert again.memory is memory
    found = answers(again)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    several = [again, *(begin(decoder, 20) for _ in range(SPARE))]
    for cache in several:
        cache.release(0)
    assert len(decoder.pool._spare) == SPARE


def test_sequences_do_not_see_each_other(decoder: StaticDecoder) -> None:
    def alone(seed: int) -> list[Any]:
        cache = begin(decoder)
        answers = [
            cache.prefill(0, prompt(decoder, 9 + seed, seed)).logits(),
            *(step(cache, token, 20 + token) for token in range(4)),
        ]
        cache.release(0)
        return answers

    wanted = [alone(0), alone(1)]
    pair = [begin(decoder) for _ in range(2)]
    found = [
        [cache.prefill(0, prompt(decoder, 9 + seed, seed)).logits()]
        for seed, cache in enumerate(pair)
    ]
    for token in range(4):
        for answers, cache in zip(found, pair, strict=True):
            answers.append(step(cache, token, 20 + token))
    for one, other in zip(found, wanted, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# What does not fit


def test_what_does_not_fit_is_refused_and_changes_nothing(decoder: StaticDecoder) -> None:
    assert decoder.capabilities.most_tokens == CAPACITY
    with pytest.raises(LimitError, match=r"up to 41 tokens.* takes 40.*shorter answer"):
        begin(decoder, CAPACITY + 1)
    cache = begin(decoder)
    width = decoder.model.hidden_size
    with pytest.raises(LimitError, match=r"has 0 tokens, and 41 more do not fit into .* 40"):
        cache.prefill(0, prompt(decoder, CAPACITY + 1))
    with pytest.raises(LimitError, match=rf"'inputs_embeds' is \[1, 33, {width}\].*--targets"):
        cache.prefill(0, prompt(decoder, 33))
    assert cache.lengths[0] == 0
    cache.prefill(0, prompt(decoder, 32))
    for number in range(8):
        last = step(cache, number, 50 + number)
    assert np.isfinite(last).all()
    assert cache.lengths[0] == CAPACITY
    with pytest.raises(LimitError, match=r"has 40 tokens, and 1 more do not fit"):
        step(cache, 1, 60)
    assert cache.lengths[0] == CAPACITY
    cache.release(0)
    with pytest.raises(ClosedError, match="is closed"):
        step(cache, 1, 60)
    with pytest.raises(ClosedError, match="is closed"):
        cache.prefill(0, prompt(decoder, 9))


def test_a_full_cache_gives_what_the_growing_decoders_give(
    decoder: StaticDecoder, tiny_bundle: Bundle
) -> None:
    backend = open_backend(tiny_bundle, "onnxruntime", device="cpu")
    model = tiny_bundle.manifest.model
    growing = DoubleBufferDecoder(engine_of(tiny_bundle, "concat"), model, decoder.table, 4096)
    graphs: list[Any] = [decoder, growing, backend.decoder().graph]  # type: ignore[attr-defined]
    several = [one.allocate(room_for(CAPACITY)) for one in graphs]
    for cache in several:
        cache.prefill(0, prompt(decoder, 30))
    for token in range(10):
        *found, wanted = (step(one, token, 100 + 3 * token) for one in several)
        for one in found:
            assert np.abs(one - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert len({cache.nbytes(0) for cache in several}) == 1
    backend.close()


def test_inputs_that_host_memory_holds_cannot_be_bound(tiny_bundle: Bundle) -> None:
    described = variants(tiny_bundle, "h100", roles=("compressor",), ranges=RANGES)
    compressor = host_engines(tiny_bundle, described, {})["compressor"]
    with pytest.raises(BackendError, match="keep"):
        compressor.bind({}, {})


def test_a_cache_keeps_where_it_writes_in_step_with_its_length(decoder: StaticDecoder) -> None:
    cache = begin(decoder)
    cache.prefill(0, prompt(decoder, 9))
    step(cache, 1, 9)
    step(cache, 2, 10)
    call = cache.memory.step
    assert call.inputs[WRITE_INDICES].numpy().tolist() == [10]
    for name, state in cache.memory.states.items():
        assert call.inputs[f"past.{name}"].memory is state.memory
        assert call.outputs[f"present.{name}"].memory is state.memory
        held = state.numpy()
        assert np.abs(held[:, :, :11]).min(axis=(1, 3)).all()
        assert not held[:, :, 11:].any()


def test_memory_is_used_again(pipe: Pipeline, samples: list[Sample]) -> None:
    """A request's memory is free as soon as it is answered, not first when Python collects garbage."""
    gpu = pipe._backend.gpu  # type: ignore[attr-defined]
    gc.disable()
    try:
        for number in range(12):
            sample = samples[number % 2]
            pipe.generate(sample.question, images=[sample.image], keep=0.25, max_new_tokens=3)
            if number == 3:
                before = len(gpu._owned)
    finally:
        gc.enable()
    assert len(gpu._owned) == before
