"""A static decoder's sequences, with CUDA and TensorRT acted out by onnxruntime in host memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, ClosedError, LimitError
from foveate.export.tensorrt.static import static_graph
from foveate.export.tensorrt.targets import Ranges
from foveate.runtime.backends import open_backend
from foveate.runtime.backends.trt.backend import TensorRTBackend
from foveate.runtime.backends.trt.tensor_specs import WRITE_INDICES
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.language.static import SPARE, StaticDecoder, StaticSequence
from foveate.runtime.pipeline import read_family, read_tokenizer
from tests.conftest import Sample
from tests.runtime.backends.trt.engines import variants
from tests.runtime.backends.trt.hosted import Cuda, host_engines

CAPACITY = 40
RANGES = Ranges(
    visual=(96, 512), pictures=(1, 4), text=(40, 256), keep=(32, 512), prompt=(96, 384), cache=(128, 384)
)  # fmt: skip


@pytest.fixture
def decoder(tiny_bundle: Bundle) -> StaticDecoder:
    """The tiny bundle's decoder with a cache of 40 tokens, for up to 32 at once."""
    ranges = Ranges(
        visual=(4, 8), pictures=(1, 1), text=(4, 8), keep=(4, 8), prompt=(16, 32), cache=(20, CAPACITY)
    )  # fmt: skip
    described = variants(tiny_bundle, "h100", roles=("decoder",), decoder="static", ranges=ranges)
    graph = static_graph(tiny_bundle.file("decoder"), CAPACITY)
    engine = host_engines(tiny_bundle, described, {"decoder": graph})["decoder"]
    return StaticDecoder(engine, tiny_bundle.manifest.model, EmbeddingTable(tiny_bundle))


def prompt(count: int, seed: int = 0) -> tuple[Any, Any, int]:
    """A random prompt for the tiny decoder."""
    generator = np.random.default_rng(seed)
    embeds = generator.standard_normal((1, count, 64)).astype(np.float32)
    return embeds, np.tile(np.arange(count), (3, 1, 1)), count


def cuda_of(decoder: StaticDecoder) -> Cuda:
    cuda: Cuda = decoder.gpu.cuda
    return cuda


# Whole answers


@pytest.fixture(
    scope="module", params=[("static", 1), ("static", 2), ("concat", 2)],
    ids=["static, one profile", "static", "concat"],
)  # fmt: skip
def pipe(nano_bundle: Bundle, request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """Nano on engines with a decoder of either kind."""
    decoder, count = request.param
    described = variants(nano_bundle, "h100", decoder=decoder, ranges=RANGES, profiles=count)
    graph = static_graph(nano_bundle.file("decoder"), RANGES.cache[1])
    graphs = {"decoder": graph} if decoder == "static" else {}
    engines = host_engines(nano_bundle, described, graphs)
    backend = TensorRTBackend(
        nano_bundle, engines["vision"].gpu, engines, EmbeddingTable(nano_bundle)
    )
    tokenizer = read_tokenizer(nano_bundle)
    with Pipeline(nano_bundle, backend, read_family(nano_bundle, tokenizer), tokenizer) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def graphs(nano_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(nano_bundle.root, device="cpu", threads=1) as pipeline:
        yield pipeline


def test_answers_are_those_of_the_graphs(
    pipe: Pipeline, graphs: Pipeline, samples: list[Sample]
) -> None:
    for number, sample in enumerate(samples[::9]):
        options = {"images": [sample.image], "keep": (1.0, 0.25)[number % 2], "max_new_tokens": 8}
        wanted = graphs.generate(sample.question, **options, ignore_eos=True)
        found = pipe.generate(sample.question, **options, ignore_eos=True)
        assert found.token_ids == wanted.token_ids, sample.id
        assert np.array_equal(found.visual.indices, wanted.visual.indices)
        assert found.cache_bytes == wanted.cache_bytes
    decoder = pipe._backend._decoder  # type: ignore[attr-defined]
    assert decoder.engine.graphs.refusal is None
    if isinstance(decoder, StaticDecoder):
        assert len(decoder.spare) == 1
        steps = 7 * (number + 1)
        assert decoder.engine.graphs.launched >= steps - 2
    else:
        assert decoder.engine.variant.decoder == "concat"


# Steps


def test_steps_become_one_cuda_graph_and_write_only_small_inputs(decoder: StaticDecoder) -> None:
    cuda, sequence = cuda_of(decoder), decoder.start(CAPACITY)
    sequence.extend(*prompt(9))
    owned = len(decoder.gpu._owned)
    for number in range(12):
        cuda.copies.clear()
        sequence.step(number, 9 + number)
        assert cuda.copies == [4 * 64, 8 * 3, 8]
    assert cuda.launches == [0] * 10
    assert len(decoder.gpu._owned) == owned
    assert sequence.length == 21
    model = decoder.model
    assert sequence.cache_bytes == 21 * 2 * 4 * model.layers * model.kv_heads * model.head_dim


def test_a_step_is_what_taking_the_token_in_is(decoder: StaticDecoder) -> None:
    stepped, extended = decoder.start(CAPACITY), decoder.start(CAPACITY)
    for sequence in (stepped, extended):
        sequence.extend(*prompt(9))
    tokens = np.arange(5, 10)
    for number, token in enumerate(tokens):
        by_step = stepped.step(int(token), 30 + number).logits()
    rows = decoder.table.look_up(tokens)[None]
    places = np.tile(30 + np.arange(5), (3, 1, 1))
    at_once = extended.extend(rows, places, 5).logits()
    assert np.abs(at_once - by_step).max() <= 1e-5 * np.abs(by_step).max()


def test_a_cache_is_used_again_without_what_was_in_it(decoder: StaticDecoder) -> None:
    first = decoder.start(20)
    wanted = [
        one.logits() for one in (first.extend(*prompt(9)), first.step(3, 9), first.step(4, 10))
    ]
    cache = first.cache
    assert cache is not None
    first.close()
    first.close()
    for state in cache.states.values():
        decoder.gpu.write(state, np.full(state.sizes, np.nan, np.float32))
    again = decoder.start(20)
    assert again.cache is cache
    found = [
        one.logits() for one in (again.extend(*prompt(9)), again.step(3, 9), again.step(4, 10))
    ]
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    several = [again, *(decoder.start(20) for _ in range(SPARE))]
    for sequence in several:
        sequence.close()
    assert len(decoder.spare) == SPARE


def test_sequences_do_not_see_each_other(decoder: StaticDecoder) -> None:
    def alone(seed: int) -> list[Any]:
        sequence = decoder.start(CAPACITY)
        answers = [
            sequence.extend(*prompt(9 + seed, seed)).logits(),
            *(sequence.step(token, 20 + token).logits() for token in range(4)),
        ]
        sequence.close()
        return answers

    wanted = [alone(0), alone(1)]
    pair = [decoder.start(CAPACITY) for _ in range(2)]
    found = [
        [sequence.extend(*prompt(9 + seed, seed)).logits()] for seed, sequence in enumerate(pair)
    ]
    for token in range(4):
        for answers, sequence in zip(found, pair, strict=True):
            answers.append(sequence.step(token, 20 + token).logits())
    for one, other in zip(found, wanted, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# What does not fit


def test_what_does_not_fit_is_refused_and_changes_nothing(decoder: StaticDecoder) -> None:
    assert decoder.capacity == CAPACITY
    with pytest.raises(LimitError, match=r"up to 41 tokens.* h100 takes 40.*shorter answer"):
        decoder.start(CAPACITY + 1)
    sequence = decoder.start(CAPACITY)
    with pytest.raises(LimitError, match=r"has 0 tokens, 41 more do not fit into the 40"):
        sequence.extend(*prompt(CAPACITY + 1))
    with pytest.raises(LimitError, match=r"'inputs_embeds' is \[1, 33, 64\].*--targets"):
        sequence.extend(*prompt(33))
    assert sequence.length == 0
    sequence.extend(*prompt(32))
    for number in range(8):
        last = sequence.step(number, 50 + number).logits()
    assert np.isfinite(last).all()
    with pytest.raises(LimitError, match=r"has 40 tokens, 1 more do not fit"):
        sequence.step(1, 60)
    assert sequence.length == CAPACITY
    sequence.close()
    with pytest.raises(ClosedError, match="is closed"):
        sequence.step(1, 60)


def test_a_filled_cache_gives_what_the_growing_decoder_gives(
    decoder: StaticDecoder, tiny_bundle: Bundle
) -> None:
    backend = open_backend(tiny_bundle, "onnxruntime", device="cpu")
    several: list[Any] = [decoder.start(CAPACITY), backend.start(CAPACITY)]
    for sequence in several:
        sequence.extend(*prompt(30))
    for token in range(10):
        found, wanted = (one.step(token, 100 + 3 * token).logits() for one in several)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    backend.close()


def test_inputs_that_host_memory_holds_cannot_be_bound(tiny_bundle: Bundle) -> None:
    described = variants(tiny_bundle, "h100", roles=("compressor",), ranges=RANGES)
    engine = host_engines(tiny_bundle, described, {})["compressor"]
    with pytest.raises(BackendError, match="keep"):
        engine.bind({}, {})


def test_a_sequence_keeps_where_it_writes_in_step_with_its_length(decoder: StaticDecoder) -> None:
    sequence: StaticSequence = decoder.start(CAPACITY)
    sequence.extend(*prompt(9))
    cache = sequence.cache
    assert cache is not None
    sequence.step(1, 9)
    sequence.step(2, 10)
    assert cache.step.inputs[WRITE_INDICES].numpy().tolist() == [10]
    for name, state in cache.states.items():
        assert state.block is cache.blocks[name.replace("past", "present")]
        held = state.numpy()
        assert np.abs(held[:, :, :11]).min(axis=(1, 3)).all()
        assert not held[:, :, 11:].any()
