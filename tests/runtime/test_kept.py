"""Tokens that are named or ranked by another text, and budgets for each picture: on every engine."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline, Request
from foveate.errors import KeepError
from tests.conftest import Sample
from tests.reference import Reference
from tests.runtime.watched import watch

QUESTION = "What shape has the letter K?"
OTHER = "How many stars are there in the picture?"


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def logits(pipe: Pipeline, **options: Any) -> np.ndarray[Any, Any]:
    """The logits of each step of an answer of six tokens."""
    watching, watched = watch(pipe)
    watching.generate(QUESTION, **options, max_new_tokens=6, ignore_eos=True)
    return np.stack(watched.seen)


# Named tokens


@pytest.mark.parametrize("kept", [[0], [17, 3, 40], range(0, 60, 7), np.array([5, 1, 2])])
def test_named_tokens_are_kept_exactly(
    engine: Pipeline, reference: Reference, pictures: list[Image.Image], kept: Any
) -> None:
    answer = engine.generate(QUESTION, images=pictures[:1], kept=kept, max_new_tokens=8)
    visual = answer.visual
    assert visual.indices.tolist() == sorted(kept)
    assert visual.indices.dtype == np.int64
    assert (visual.kept, visual.relevance) == (len(kept), None)
    request = reference.prepare(QUESTION, pictures[:1])
    assert answer.token_ids == reference.generate_kept(request, visual.indices, 8)
    dropped = visual.total - visual.kept
    whole = engine.generate(QUESTION, images=pictures[:1], keep=1.0, max_new_tokens=1)
    assert whole.prompt_tokens - answer.prompt_tokens == dropped


@pytest.mark.parametrize("keep", [0.25, 7])
def test_named_tokens_are_those_of_a_ranking(
    engine: Pipeline, pictures: list[Image.Image], keep: float | int
) -> None:
    """Bit for bit, whether the graph gathers them or they are gathered by their ordinals."""
    ranked = engine.generate(QUESTION, images=pictures, keep=keep, max_new_tokens=6)
    named = engine.generate(QUESTION, images=pictures, kept=ranked.visual.indices, max_new_tokens=6)
    assert np.array_equal(named.visual.indices, ranked.visual.indices)
    assert named.token_ids == ranked.token_ids
    assert np.array_equal(
        logits(engine, images=pictures, kept=ranked.visual.indices),
        logits(engine, images=pictures, keep=keep),
    )


def test_keeping_all_is_naming_all(engine: Pipeline, pictures: list[Image.Image]) -> None:
    whole = engine.generate(QUESTION, images=pictures, keep=1.0, max_new_tokens=6)
    total = whole.visual.total
    assert whole.visual.indices.tolist() == list(range(total))
    ways: list[dict[str, Any]] = [
        {"keep": 1.0}, {"kept": range(total)}, {"kept": [*range(total)][::-1]}, {"keep": total},
        {"keep": 1.0, "rank_by": OTHER}, {"keep": 1.0, "rank": "each"},
    ]  # fmt: skip
    found = [logits(engine, images=pictures, **way) for way in ways]
    for one in found[1:]:
        assert np.array_equal(one, found[0])


def test_names_that_no_token_has_are_refused(engine: Pipeline, pictures: list[Image.Image]) -> None:
    total = engine.generate(QUESTION, images=pictures, keep=1.0, max_new_tokens=1).visual.total
    for kept in ([], [total], [-1], [1, 1], [0.5], ["1"]):
        with pytest.raises(
            KeepError, match=rf"from 0 to {total - 1}, each once|whole numbers from 0 on"
        ):
            engine.generate(QUESTION, images=pictures, kept=kept)  # type: ignore[arg-type]
    for beside in ({"keep": 0.5}, {"rank_by": OTHER}):
        with pytest.raises(KeepError, match="leave out keep and rank_by"):
            engine.generate(QUESTION, images=pictures, kept=[1], **beside)  # type: ignore[arg-type]


# Another text that ranks


def test_tokens_are_ranked_by_another_text_and_the_prompt_is_answered(
    engine: Pipeline, reference: Reference, samples: list[Sample]
) -> None:
    differing = 0
    for sample in samples[::34]:
        asked: dict[str, Any] = {"images": [sample.image], "keep": 0.25, "max_new_tokens": 8}
        answer = engine.generate(sample.question, **asked, rank_by=OTHER)
        other = engine.generate(OTHER, **asked)
        assert np.array_equal(answer.visual.indices, other.visual.indices)
        assert np.array_equal(answer.visual.relevance, other.visual.relevance)
        request = reference.prepare(sample.question, [Image.open(sample.image)])
        wanted = reference.generate_kept(request, answer.visual.indices, 8)
        assert answer.token_ids == wanted, sample.id
        own = engine.generate(sample.question, **asked)
        again = engine.generate(sample.question, **asked, rank_by=sample.question)
        assert np.array_equal(again.visual.indices, own.visual.indices)
        assert again.token_ids == own.token_ids
        differing += not np.array_equal(own.visual.indices, answer.visual.indices)
    assert differing


def test_requests_of_a_batch_are_each_ranked_as_they_ask(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    ways: list[dict[str, Any]] = [
        {"keep": 0.25}, {"keep": 0.25, "rank_by": OTHER}, {"kept": [4, 2]}, {"keep": 0.25, "rank": "each"},
    ]  # fmt: skip
    if engine.backend == "tensorrt":
        ways = ways[1:2]
    together = engine.generate_batch(
        [Request(QUESTION, images=pictures, max_new_tokens=4, **way) for way in ways]
    )
    for given, way in zip(together, ways, strict=True):
        alone = engine.generate(QUESTION, images=pictures, max_new_tokens=4, **way)
        assert given.token_ids == alone.token_ids
        assert np.array_equal(given.visual.indices, alone.visual.indices)


# A budget for each picture


@pytest.mark.parametrize("keep", [0.3, 0.05, 9, 40])
def test_every_picture_keeps_its_own(
    engine: Pipeline, reference: Reference, pictures: list[Image.Image], keep: float | int
) -> None:
    asked: dict[str, Any] = {"images": pictures, "keep": keep, "max_new_tokens": 8}
    answer = engine.generate(QUESTION, **asked, rank="each")
    visual = answer.visual
    assert visual.relevance is not None
    kept = np.zeros(visual.total, bool)
    kept[visual.indices] = True
    sizes = []
    for number in range(len(pictures)):
        here = visual.picture == number
        sizes.append(int(here.sum()))
        wanted = (
            min(keep, sizes[-1]) if isinstance(keep, int) else max(1, int(sizes[-1] * keep + 0.5))
        )
        assert (here & kept).sum() == wanted
        if wanted < sizes[-1]:
            relevance = visual.relevance
            assert relevance[here & kept].min() >= relevance[here & ~kept].max()
    assert len(set(sizes)) == len(sizes)
    request = reference.prepare(QUESTION, pictures)
    assert answer.token_ids == reference.generate_kept(request, visual.indices, 8)
    together = engine.generate(QUESTION, **asked)
    if isinstance(keep, int):
        assert (together.visual.kept, visual.kept) == (keep, sum(min(keep, size) for size in sizes))
    assert not np.array_equal(together.visual.indices, visual.indices)
    assert np.array_equal(together.visual.relevance, visual.relevance)


def test_one_picture_has_one_budget_either_way(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    for keep in (0.3, 9):
        ways = [
            engine.generate(QUESTION, images=pictures[:1], keep=keep, rank=rank, max_new_tokens=3)
            for rank in ("together", "each")
        ]
        assert np.array_equal(ways[0].visual.indices, ways[1].visual.indices)
        assert ways[0].token_ids == ways[1].token_ids


def test_frames_of_a_video_have_budgets_of_their_own(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    frames = [np.asarray(one.resize((112, 112))) for one in pictures] * 2
    answer = engine.generate(QUESTION, video=frames, keep=0.25, rank="each", max_new_tokens=2)
    visual = answer.visual
    kept = np.bincount(visual.picture[visual.indices])
    assert kept.tolist() == (np.bincount(visual.picture) // 4).tolist()
    assert len(kept) == 5 and np.flatnonzero(kept).tolist() == [0, 2, 4]
