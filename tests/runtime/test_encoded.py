"""Pictures that are encoded once and asked about many times: on every engine."""

import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Answer, Pipeline, Request
from foveate.bundle.reader import Bundle
from foveate.errors import ClosedError, ImageError, LimitError
from foveate.runtime import EncodedMedia
from foveate.runtime.tensors import on_host
from tests.runtime.watched import watch

QUESTIONS = ("What shape has the letter K?", "How many stars are there?")


def same(given: Answer, wanted: Answer) -> None:
    """Compare two answers in all but their timing."""
    assert given.token_ids == wanted.token_ids
    assert (given.text, given.finish_reason) == (wanted.text, wanted.finish_reason)
    assert (given.prompt_tokens, given.cache_bytes) == (wanted.prompt_tokens, wanted.cache_bytes)
    for name in ("indices", "relevance", "picture", "boxes"):
        assert np.array_equal(getattr(given.visual, name), getattr(wanted.visual, name))


@pytest.mark.parametrize("keep", [1.0, 0.25])
def test_answers_are_those_of_asking_with_the_pictures(
    engine: Pipeline, pictures: list[Image.Image], keep: float
) -> None:
    seen = engine.encode(images=pictures)
    for question in QUESTIONS:
        wanted = engine.generate(question, images=pictures, keep=keep, max_new_tokens=6)
        given = seen.generate(question, keep=keep, max_new_tokens=6)
        same(given, wanted)
        same(engine.generate(question, encoded=seen, keep=keep, max_new_tokens=6), wanted)
        stream = seen.stream(question, keep=keep, max_new_tokens=6)
        assert "".join(stream) == wanted.text
        same(stream.answer, wanted)
        (batched,) = engine.generate_batch(
            [Request(question, encoded=seen, keep=keep, max_new_tokens=6)]
        )
        same(batched, wanted)


def test_a_video_is_encoded_once(engine: Pipeline, pictures: list[Image.Image]) -> None:
    frames = [np.asarray(one.resize((112, 112))) for one in pictures]
    wanted = engine.generate(QUESTIONS[0], video=frames, keep=0.5, max_new_tokens=4)
    same(engine.encode(video=frames).generate(QUESTIONS[0], keep=0.5, max_new_tokens=4), wanted)


def test_all_ways_to_keep_work_on_encoded_pictures(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    seen = engine.encode(images=pictures)
    ways: list[dict[str, Any]] = [
        {"kept": [7, 5, 60]}, {"keep": 0.2, "rank_by": QUESTIONS[1]}, {"keep": 8, "rank": "each"}
    ]  # fmt: skip
    for way in ways:
        wanted = engine.generate(QUESTIONS[0], images=pictures, **way, max_new_tokens=4)
        same(seen.generate(QUESTIONS[0], **way, max_new_tokens=4), wanted)


def test_pictures_are_not_encoded_again(
    engine: Pipeline, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = engine.generate(QUESTIONS[0], images=pictures, keep=0.5, max_new_tokens=4)
    seen = engine.encode(images=pictures)
    monkeypatch.setattr(engine._backend, "encode", None)
    same(seen.generate(QUESTIONS[0], keep=0.5, max_new_tokens=4), wanted)


def test_they_outlast_other_pictures(engine: Pipeline, pictures: list[Image.Image]) -> None:
    first = engine.encode(images=pictures[:1])
    wanted = first.generate(QUESTIONS[0], keep=0.5, max_new_tokens=4)
    assert first.embeds is not None
    embeds = on_host(first.embeds).copy()
    kept_too: list[EncodedMedia] = []
    for number, picture in enumerate([pictures[1], pictures[2], pictures[0].rotate(180)] * 2):
        engine.generate(QUESTIONS[1], images=[picture], keep=0.5, max_new_tokens=2)
        kept_too.append(engine.encode(images=[picture, *pictures[: number % 3]]))
    assert np.array_equal(on_host(first.embeds), embeds)
    same(first.generate(QUESTIONS[0], keep=0.5, max_new_tokens=4), wanted)
    same(
        kept_too[0].generate(QUESTIONS[0], keep=0.5, max_new_tokens=4),
        engine.generate(QUESTIONS[0], images=[pictures[1]], keep=0.5, max_new_tokens=4),
    )


def test_two_threads_ask_about_one_picture(engine: Pipeline, pictures: list[Image.Image]) -> None:
    seen = engine.encode(images=pictures)
    wanted = [seen.generate(one, keep=0.25, max_new_tokens=6) for one in QUESTIONS]
    found: dict[int, list[Answer]] = {}

    def ask(number: int) -> None:
        """Ask one question four times."""
        found[number] = [
            seen.generate(QUESTIONS[number], keep=0.25, max_new_tokens=6) for _ in range(4)
        ]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1]
    for number, answers in found.items():
        for answer in answers:
            same(answer, wanted[number])


def test_scores_are_those_that_a_request_is_ranked_by(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    seen = engine.encode(images=pictures)
    for question in QUESTIONS:
        scores = seen.rank(question)
        assert scores.shape == (seen.visual.tokens,)
        for keep in (0.5, 5):
            kept = seen.generate(QUESTIONS[0], keep=keep, rank_by=question, max_new_tokens=1).visual
            best = np.sort(np.argsort(-scores, kind="stable")[: kept.kept])
            assert kept.indices.tolist() == best.tolist()


def test_smaller_pictures_are_those_of_the_same_size(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    seen = engine.encode(images=pictures[:2])
    smaller = seen.smaller([16, 20])
    counts = np.bincount(smaller.visual.picture)
    assert (counts <= [16, 20]).all()
    assert (counts >= [9, 12]).all()
    wanted = engine._family.shrink(pictures[:2], [16, 20])
    assert np.array_equal(smaller.visual.boxes, wanted.boxes)
    answer = smaller.generate(QUESTIONS[0], keep=0.5, max_new_tokens=4)
    assert answer.visual.total == counts.sum()
    assert seen.generate(QUESTIONS[0], max_new_tokens=1).visual.total == seen.visual.tokens
    for wrong in ([16], [16, 0], 16, [16, 1.5]):
        with pytest.raises(LimitError, match=r"most is .* for each picture"):
            seen.smaller(wrong)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="not made smaller"):
        engine.encode(video=[np.asarray(pictures[0])] * 2).smaller([4])


def test_pictures_of_another_pipeline_are_refused(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    other, _ = watch(engine)
    seen = engine.encode(images=pictures)
    with pytest.raises(ImageError, match="encoded by another pipeline"):
        other.generate(QUESTIONS[0], encoded=seen)
    with pytest.raises(ImageError, match="encoded by another pipeline"):
        other.rank(QUESTIONS[0], seen)
    with pytest.raises(ImageError, match="encoded by another pipeline"):
        other.shrink(seen, [4] * len(pictures))
    with pytest.raises(ImageError, match=r"requests\[0\]: .*encoded by another pipeline"):
        other.generate_batch([Request(QUESTIONS[0], encoded=seen)])
    for beside in ({"images": pictures}, {"video": [np.asarray(pictures[0])] * 2}):
        with pytest.raises(ImageError, match="leave out images and video"):
            engine.generate(QUESTIONS[0], encoded=seen, **beside)


def test_what_cannot_be_encoded(engine: Pipeline, pictures: list[Image.Image]) -> None:
    with pytest.raises(ImageError, match="no picture was given"):
        engine.encode()
    with pytest.raises(ImageError, match="one or the other"):
        engine.encode(images=pictures, video=[np.asarray(pictures[0])])
    with pytest.raises(ImageError, match="pass a list"):
        engine.encode(images="scene.png")
    limit = engine._backend.visual_tokens
    many = [np.full((448, 448, 3), 200, np.uint8)] * (limit // 256 + 1)
    with pytest.raises(LimitError, match=rf"visual tokens and {limit} are taken"):
        engine.encode(images=many)


@pytest.mark.parametrize("operators", ["nano_bundle", "contrib_bundle"])
def test_a_closed_pipeline_refuses(
    operators: str, pictures: list[Image.Image], request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(operators)
    pipe = Pipeline.load(bundle.root, device="cpu")
    seen = pipe.encode(images=pictures)
    pipe.close()
    with pytest.raises(ClosedError):
        seen.generate(QUESTIONS[0])
    with pytest.raises(ClosedError):
        pipe.encode(images=pictures)
