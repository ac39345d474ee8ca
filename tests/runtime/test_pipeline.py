"""The whole chain against transformers on held-out questions, and all that may go wrong with it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import (
    BackendError,
    BundleNotFoundError,
    ClosedError,
    FoveateError,
    ImageError,
    KeepError,
    LimitError,
    PromptError,
    SamplingError,
)
from tests.conftest import Sample
from tests.reference import Reference

LOGITS = 1e-4
"""Absolute, on logits of magnitude 20: float32 sums in another order through ten layers."""


@pytest.fixture(scope="module")
def pipe(nano_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(nano_bundle.root, device="cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="module")
def scene(samples: list[Sample]) -> Sample:
    return next(sample for sample in samples if sample.task == "letter")


def test_uncompressed_answers_are_those_of_generate(
    pipe: Pipeline, reference: Reference, samples: list[Sample]
) -> None:
    """Greedy tokens identical on every held-out sample; the prompt's logits within LOGITS."""
    assert len(samples) >= 100
    worst = 0.0
    for sample in samples:
        picture = Image.open(sample.image)
        request = reference.prepare(sample.question, [picture])
        expected, logits = reference.generate(request, 8)
        seen: list[np.ndarray[Any, Any]] = []
        answer = watch_logits(pipe, seen).generate(
            sample.question, images=[sample.image], keep=1.0, max_new_tokens=8
        )
        assert answer.token_ids == expected, sample.id
        worst = max(worst, float(np.abs(seen[0] - logits).max()))
    assert worst <= LOGITS


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.1, 7])
def test_compressed_answers_are_those_of_dropping_the_same_tokens(
    pipe: Pipeline, reference: Reference, samples: list[Sample], keep: float | int
) -> None:
    for sample in samples[::4]:
        request = reference.prepare(sample.question, [Image.open(sample.image)])
        answer = pipe.generate(sample.question, images=[sample.image], keep=keep, max_new_tokens=8)
        kept = answer.visual.indices
        assert len(kept) == answer.visual.kept < answer.visual.total
        assert answer.token_ids == reference.generate_kept(request, kept, 8), sample.id


def test_the_nano_checkpoint_answers_rightly(pipe: Pipeline, samples: list[Sample]) -> None:
    """At least 95 % of the committed held-out questions, with all tokens."""
    right = [
        pipe.generate(sample.question, images=[sample.image], keep=1.0).text == sample.answer
        for sample in samples
    ]
    assert np.mean(right) >= 0.95


def test_several_pictures_in_one_request(
    pipe: Pipeline, reference: Reference, samples: list[Sample]
) -> None:
    pictures = [Image.open(sample.image) for sample in samples[:12:4]]
    sizes = {picture.size for picture in pictures}
    assert len(sizes) == len(pictures)
    request = reference.prepare("What shape has the letter K?", pictures)
    whole = pipe.generate(
        "What shape has the letter K?", images=pictures, keep=1.0, max_new_tokens=8
    )
    assert whole.token_ids == reference.generate(request, 8)[0]
    part = pipe.generate(
        "What shape has the letter K?", images=pictures, keep=0.3, max_new_tokens=8
    )
    assert part.token_ids == reference.generate_kept(request, part.visual.indices, 8)
    assert sum(rows * columns for _, rows, columns in part.visual.grids) == part.visual.total


def test_pictures_from_everywhere_give_one_answer(pipe: Pipeline, scene: Sample) -> None:
    picture = Image.open(scene.image).convert("RGB")
    sources = [
        scene.image,
        str(scene.image),
        scene.image.read_bytes(),
        picture,
        np.asarray(picture),
    ]
    answers = {pipe.generate(scene.question, images=[source], keep=0.5).text for source in sources}
    assert answers == {scene.answer}


def test_what_was_kept_is_told(pipe: Pipeline, scene: Sample) -> None:
    answer = pipe.generate(scene.question, images=[scene.image], keep=0.25)
    visual = answer.visual
    assert visual.kept == round(visual.total * 0.25)
    assert visual.relevance is not None
    assert visual.relevance.dtype == np.float32
    assert visual.relevance.sum() == pytest.approx(1, abs=1e-5)
    ranked = np.sort(np.argsort(-visual.relevance, kind="stable")[: visual.kept])
    assert np.array_equal(visual.indices, ranked)
    assert pipe.generate(scene.question, images=[scene.image], keep=1.0).visual.relevance is None


def test_the_cache_is_as_long_as_what_was_kept(pipe: Pipeline, scene: Sample) -> None:
    model = pipe.bundle.manifest.model
    a_token = 2 * model.layers * model.kv_heads * model.head_dim * 4
    answers = [
        pipe.generate(scene.question, images=[scene.image], keep=keep) for keep in (1.0, 0.25)
    ]
    for answer in answers:
        assert answer.cache_bytes == a_token * (answer.prompt_tokens + len(answer.token_ids))
    dropped = answers[0].visual.kept - answers[1].visual.kept
    assert answers[0].cache_bytes - answers[1].cache_bytes == a_token * dropped


def test_timing_adds_up(pipe: Pipeline, scene: Sample) -> None:
    timing = pipe.generate(scene.question, images=[scene.image], keep=0.5).timing
    stages = timing.preprocess + timing.vision + timing.compress + timing.prefill
    assert 0 < stages <= timing.first_token <= timing.total
    assert timing.decode <= timing.total - timing.first_token


def test_a_stream_is_the_answer_in_pieces(pipe: Pipeline, scene: Sample) -> None:
    stream = pipe.stream("Describe the picture.", images=[scene.image], keep=1.0)
    with pytest.raises(FoveateError):
        _ = stream.answer
    pieces = list(stream)
    assert len(pieces) > 3
    assert all(pieces)
    assert "".join(pieces) == stream.answer.text
    assert list(stream) == []


def test_a_stream_holds_back_half_a_character(pipe: Pipeline, scene: Sample) -> None:
    """Random tokens break characters apart; the pieces still join to the text."""
    for seed in range(5):
        stream = pipe.stream(
            scene.question, images=[scene.image], temperature=50.0, seed=seed, max_new_tokens=40
        )
        assert "".join(stream) == stream.answer.text


def test_greedy_and_seeded_sampling_repeat(pipe: Pipeline, scene: Sample) -> None:
    options: dict[str, Any] = {"images": [scene.image], "keep": 0.5, "max_new_tokens": 12}
    greedy = [pipe.generate("Describe the picture.", **options).token_ids for _ in range(2)]
    assert greedy[0] == greedy[1]
    hot = [
        pipe.generate("Describe the picture.", temperature=3.0, seed=seed, **options).token_ids
        for seed in (1, 1, 2)
    ]
    assert hot[0] == hot[1] != hot[2]
    narrow = pipe.generate("Describe the picture.", temperature=3.0, top_k=1, seed=5, **options)
    assert narrow.token_ids == greedy[0]


def test_the_answer_ends_at_the_limit_or_a_stop_token(pipe: Pipeline, scene: Sample) -> None:
    cut = pipe.generate("Describe the picture.", images=[scene.image], max_new_tokens=2)
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 2)
    whole = pipe.generate("Describe the picture.", images=[scene.image], keep=1.0)
    assert whole.finish_reason == "stop"
    assert not set(whole.token_ids) & set(pipe.bundle.manifest.generation.eos)
    early = pipe.generate(
        "Describe the picture.", images=[scene.image], keep=1.0, stop_tokens=[whole.token_ids[3]]
    )
    assert early.token_ids == whole.token_ids[: whole.token_ids.index(whole.token_ids[3])]


BAD_REQUESTS: list[tuple[dict[str, Any], type[FoveateError]]] = [
    ({"images": []}, ImageError),
    ({"images": "scene.png"}, ImageError),
    ({"images": [b""]}, ImageError),
    ({"images": [b"not a picture"]}, ImageError),
    ({"images": [Path("no-such-file.png")]}, ImageError),
    ({"images": [np.zeros((1, 4000, 3), np.uint8)]}, ImageError),
    ({"images": [np.zeros((10, 10, 3), np.float32)]}, ImageError),
    ({"prompt": ""}, PromptError),
    ({"prompt": "  \n"}, PromptError),
    ({"prompt": "What is <|image_pad|>?"}, PromptError),
    ({"prompt": "Stop.<|im_end|>"}, PromptError),
    ({"keep": 0}, KeepError),
    ({"keep": 0.0}, KeepError),
    ({"keep": 1.5}, KeepError),
    ({"keep": float("nan")}, KeepError),
    ({"keep": -3}, KeepError),
    ({"keep": 10**6}, KeepError),
    ({"keep": True}, KeepError),
    ({"keep": "0.5"}, KeepError),
    ({"max_new_tokens": 0}, LimitError),
    ({"max_new_tokens": 10**6}, LimitError),
    ({"temperature": -1.0}, SamplingError),
    ({"temperature": float("nan")}, SamplingError),
    ({"top_p": 0.0}, SamplingError),
    ({"top_k": 0}, SamplingError),
    ({"seed": -1}, SamplingError),
    ({"repetition_penalty": 0.0}, SamplingError),
]


@pytest.mark.parametrize(
    ("change", "error"), BAD_REQUESTS, ids=[str(c)[:40] for c, _ in BAD_REQUESTS]
)
def test_bad_requests_are_typed_errors(
    pipe: Pipeline, scene: Sample, change: dict[str, Any], error: type[FoveateError]
) -> None:
    request = {"prompt": scene.question, "images": [scene.image], **change}
    with pytest.raises(error) as caught:
        pipe.generate(request.pop("prompt"), **request)
    assert "\n" not in str(caught.value)


def test_too_many_visual_tokens_is_an_error(pipe: Pipeline, scene: Sample) -> None:
    limit = pipe.bundle.manifest.limits.visual_tokens
    pictures = [np.full((448, 448, 3), 200, np.uint8)] * (limit // 256 + 1)
    with pytest.raises(LimitError, match="visual tokens"):
        pipe.generate(scene.question, images=pictures, keep=0.01)


def test_what_cannot_be_had_is_refused(nano_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        Pipeline.load(tmp_path)
    with pytest.raises(BackendError, match="backend"):
        Pipeline.load(nano_bundle.root, backend="magic")
    with pytest.raises(BackendError, match="device"):
        Pipeline.load(nano_bundle.root, device="abacus")


def test_cuda_is_given_or_refused_never_replaced(nano_bundle: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        Pipeline.load(nano_bundle.root, device="cuda")


def test_a_closed_pipeline_refuses(nano_bundle: Bundle, scene: Sample) -> None:
    pipeline = Pipeline.load(nano_bundle.root)
    pipeline.close()
    pipeline.close()
    with pytest.raises(ClosedError):
        pipeline.generate(scene.question, images=[scene.image])


def test_threads_may_share_a_pipeline(pipe: Pipeline, samples: list[Sample]) -> None:
    chosen = samples[:16]

    def ask(sample: Sample) -> list[int]:
        return pipe.generate(sample.question, images=[sample.image], keep=0.5).token_ids

    alone = [ask(sample) for sample in chosen]
    together: dict[int, list[int]] = {}

    def work(first: int) -> None:
        for number in range(first, len(chosen), 4):
            together[number] = ask(chosen[number])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(len(chosen))] == alone


def test_a_thousand_requests_leave_no_memory_behind(pipe: Pipeline, samples: list[Sample]) -> None:
    """Resident memory after 1,000 requests, most of them small, within 16 MB of that after the first 150."""
    process = psutil.Process()
    after_warming = 0
    for number in range(1000):
        sample = samples[number * 7 % len(samples)]
        keep = (0.1, 0.25, 0.5, 1.0)[number % 4]
        picture = sample.image if number % 5 == 0 else Image.open(sample.image).resize((112, 84))
        pipe.generate(sample.question, images=[picture], keep=keep, max_new_tokens=2)
        if number == 150:
            after_warming = process.memory_info().rss
    assert process.memory_info().rss - after_warming < 16e6


def watch_logits(pipe: Pipeline, seen: list[np.ndarray[Any, Any]]) -> Pipeline:
    """A copy of the pipeline that notes the logits of each step."""

    class Watched:
        """A sequence."""

        def __init__(self, sequence: Any) -> None:
            self.sequence = sequence

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sequence, name)

        def extend(self, *inputs: Any) -> Any:
            following = self.sequence.extend(*inputs)
            seen.append(following.logits().copy())
            return following

        def step(self, *inputs: Any) -> Any:
            following = self.sequence.step(*inputs)
            seen.append(following.logits().copy())
            return following

    class Watching:
        """A backend."""

        def __getattr__(self, name: str) -> Any:
            return getattr(pipe._backend, name)

        def start(self, capacity: int) -> Any:
            return Watched(pipe._backend.start(capacity))

    return Pipeline(pipe.bundle, Watching(), pipe._family, pipe._tokenizer)  # type: ignore[arg-type]
