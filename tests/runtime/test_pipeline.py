"""The whole chain against transformers on held-out questions."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from tests.conftest import Sample
from tests.reference import Reference, Request
from tests.runtime.watched import grids, watch

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


@pytest.fixture(scope="module")
def prepared(reference: Reference, samples: list[Sample]) -> dict[str, Request]:
    """Every sample as transformers prepares it."""
    return {
        sample.id: reference.prepare(sample.question, [Image.open(sample.image)])
        for sample in samples
    }


def test_uncompressed_answers_are_those_of_generate_and_right(
    pipe: Pipeline, reference: Reference, samples: list[Sample], prepared: dict[str, Request]
) -> None:
    """Greedy tokens identical on every held-out sample; the prompt's logits within LOGITS.

    At least 95 % of the answers are right.
    """
    assert len(samples) >= 100
    worst, right = 0.0, 0
    for sample in samples:
        expected, logits = reference.generate(prepared[sample.id], 8)
        watching, watched = watch(pipe)
        answer = watching.generate(
            sample.question, images=[sample.image], keep=1.0, max_new_tokens=8
        )
        assert answer.token_ids == expected, sample.id
        worst = max(worst, float(np.abs(watched.seen[0] - logits).max()))
        right += answer.text == sample.answer
    assert worst <= LOGITS
    assert right >= 0.95 * len(samples)


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.1, 7])
def test_compressed_answers_are_those_of_dropping_the_same_tokens(
    pipe: Pipeline, reference: Reference, samples: list[Sample], prepared: dict[str, Request],
    keep: float | int,
) -> None:  # fmt: skip
    for sample in samples[::4]:
        answer = pipe.generate(sample.question, images=[sample.image], keep=keep, max_new_tokens=8)
        kept = answer.visual.indices
        assert len(kept) == answer.visual.kept < answer.visual.total
        assert answer.token_ids == reference.generate_kept(prepared[sample.id], kept, 8), sample.id


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
    assert [number for number, _, _ in grids(part.visual)] == [0, 1, 2]
    assert sum(rows * columns for _, rows, columns in grids(part.visual)) == part.visual.total


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


def test_a_thousand_requests_leave_no_memory_behind(
    tiny_bundle: Bundle, samples: list[Sample]
) -> None:
    """Resident memory after 1,000 requests, most of them small, within 16 MB of that after the first 150."""
    process = psutil.Process()
    after_warming = 0
    with Pipeline.load(tiny_bundle.root, device="cpu") as pipe:
        for number in range(1000):
            sample = samples[number * 7 % len(samples)]
            keep = (0.1, 0.25, 0.5, 1.0)[number % 4]
            picture = (
                sample.image if number % 20 == 0 else Image.open(sample.image).resize((112, 84))
            )
            pipe.generate(sample.question, images=[picture], keep=keep, max_new_tokens=2)
            if number == 150:
                after_warming = process.memory_info().rss
        assert process.memory_info().rss - after_warming < 16e6
