"""Graphs of contrib operators on a GPU; see tests/runtime/ready.py."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline, Request
from foveate.runtime.backends import buckets
from tests.conftest import Sample
from tests.runtime.ready import need_cuda, ready_bundle
from tests.runtime.seams import check_encoded_pictures, check_kept_tokens, check_streams_left_early

pytestmark = pytest.mark.gpu
SIZES = [(364, 252), (224, 308), (252, 420), (252, 252), (224, 224), (448, 252)]
"""117, 88, 135, 81, 64 and 144 visual tokens: three buckets."""
KEEPS = (1.0, 0.5, 0.25)


@pytest.fixture(scope="module")
def standard() -> Iterator[Pipeline]:
    """What answers are compared with: float32 on the CPU."""
    need_cuda()
    with Pipeline.load(ready_bundle("nano-fp32").root, device="cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    need_cuda()
    bundle = ready_bundle(f"nano-contrib-{request.param}")
    with Pipeline.load(bundle.root, device="cuda") as pipeline:
        yield pipeline


@pytest.fixture
def half(pipe: Pipeline) -> Pipeline:
    """fp16, whose answers are those of fp32: nano's are one clear token each."""
    if pipe.bundle.manifest.precision != "fp16":
        pytest.skip("bf16 may answer otherwise than fp32")
    return pipe


def noise(height: int, width: int) -> Image.Image:
    """A picture that nothing resizes."""
    random = np.random.default_rng(height * width)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


def test_answers_stay_the_same_once_captured(
    half: Pipeline, standard: Pipeline, samples: list[Sample]
) -> None:
    """The fifth call launches graphs alone."""
    for sample in samples[::10]:
        for keep in KEEPS:
            wanted = standard.generate(sample.question, images=[sample.image], keep=keep)
            for _ in range(5):
                given = half.generate(sample.question, images=[sample.image], keep=keep)
                assert given.text == wanted.text


def test_captured_calls_repeat_to_the_token(pipe: Pipeline, samples: list[Sample]) -> None:
    for sample in samples[::40]:
        asked: dict[str, Any] = {"images": [sample.image], "keep": 0.5, "max_new_tokens": 12}
        first = pipe.generate(sample.question, **asked, ignore_eos=True)
        for _ in range(4):
            again = pipe.generate(sample.question, **asked, ignore_eos=True)
            assert again.token_ids == first.token_ids
            assert np.array_equal(again.visual.indices, first.visual.indices)


def test_batches_are_answered_as_each_alone(
    half: Pipeline, standard: Pipeline, samples: list[Sample]
) -> None:
    """Later calls launch graphs alone."""
    requests = [
        Request(sample.question, images=[sample.image], keep=keep)
        for sample in samples[::20]
        for keep in KEEPS
    ]
    wanted = [one.text for one in standard.generate_batch(requests)]
    for _ in range(4):
        assert [one.text for one in half.generate_batch(requests)] == wanted
    describe = Request("Describe the picture.", images=[samples[0].image], keep=1.0)
    (alone,) = half.generate_batch([describe])
    for one in half.generate_batch([describe] * 5):
        assert one.token_ids == alone.token_ids


def test_padded_pictures(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels may differ by size; from the second round on, buckets alone are launched."""
    most = {"fp16": 0.01, "bf16": 0.08}[pipe.bundle.manifest.precision]
    monkeypatch.setattr(buckets, "MOST_EXACT", 0)
    backend: Any = pipe._backend
    before = len(backend.engines["vision"].graphs)
    for height, width in SIZES * 3:
        visual = pipe._family.prepare([noise(height, width)])
        memory = getattr(backend._padding.own, "memory", None)
        if memory is not None:
            memory[:] = np.random.default_rng(1).integers(0, 256, memory.shape, np.uint8)
        given = as_float32(backend.encode(visual).numpy())
        shapes = {"visual_embeds": (visual.tokens, backend._width)}
        engine = backend.engines["vision"]
        bare = engine.run(visual.calls[0].inputs, shapes, capture=False)["visual_embeds"]
        wanted = as_float32(bare.numpy())
        assert given.shape == wanted.shape
        assert np.abs(given - wanted).max() <= most * np.abs(wanted).max()
    assert len(engine.graphs) <= before + 3


def as_float32(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float16, or bfloat16 that is held as uint16, as float32."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def test_kept_tokens(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    for _ in range(3):
        check_kept_tokens(pipe, pictures)


def test_encoded_pictures(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    check_encoded_pictures(pipe, pictures)


def test_streams_left_early(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    check_streams_left_early(pipe, pictures)


def test_float32_on_the_cpu_of_this_build(standard: Pipeline, samples: list[Sample]) -> None:
    with Pipeline.load(ready_bundle("nano-contrib-fp32").root, device="cpu") as contrib:
        for sample in samples[::20]:
            for keep in KEEPS:
                asked: dict[str, Any] = {"images": [sample.image], "keep": keep}
                given = contrib.generate(sample.question, **asked)
                wanted = standard.generate(sample.question, **asked)
                assert given.token_ids == wanted.token_ids
                assert np.array_equal(given.visual.indices, wanted.visual.indices)


@pytest.mark.parametrize("keep", KEEPS)
def test_standard_operators_on_the_gpu(
    standard: Pipeline, samples: list[Sample], keep: float
) -> None:
    with Pipeline.load(standard.bundle.root, device="cuda") as pipeline:
        for sample in samples[::20]:
            asked: dict[str, Any] = {"images": [sample.image], "keep": keep}
            given = pipeline.generate(sample.question, **asked)
            assert given.text == standard.generate(sample.question, **asked).text
