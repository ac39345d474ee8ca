"""keep="auto": as many tokens as hold a share of the relevance, on every engine."""

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from foveate import Pipeline, Request
from foveate.bundle.manifest import CompressorFacts
from foveate.errors import KeepError
from tests.exported import AUTO_KEEP
from tests.runtime.watched import watch

QUESTION, OTHER = "What shape has the letter K?", "How many stars are there in the picture?"


def fewest(relevance: np.ndarray[Any, Any]) -> set[int]:
    """The fewest tokens that hold the share, within the bounds: one after the other."""
    total, kept = len(relevance), set[int]()
    least, most = (max(1, int(total * bound + 0.5)) for bound in (AUTO_KEEP.least, AUTO_KEEP.most))
    for token in np.argsort(-relevance, kind="stable").tolist():
        held = sum(float(relevance[one]) for one in kept)
        enough = held >= AUTO_KEEP.share * float(relevance.sum(dtype=np.float64))
        if len(kept) >= most or (len(kept) >= least and enough):
            break
        kept.add(token)
    return kept


def test_the_fewest_tokens_that_hold_the_share(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    counts = set()
    for number, question in enumerate((QUESTION, OTHER, "What is it?")):
        asked: dict[str, Any] = {"images": [pictures[number]], "max_new_tokens": 6}
        answer = engine.generate(question, **asked, keep="auto")
        visual = answer.visual
        assert visual.relevance is not None
        assert set(visual.indices.tolist()) == fewest(visual.relevance)
        counts.add(visual.kept / visual.total)
        named = engine.generate(question, **asked, kept=visual.indices)
        assert (named.token_ids, named.prompt_tokens) == (answer.token_ids, answer.prompt_tokens)
        whole = engine.generate(question, **asked, keep=1.0)
        assert whole.prompt_tokens - answer.prompt_tokens == visual.total - visual.kept
        assert np.array_equal(
            visual.relevance, engine.generate(question, **asked, keep=0.25).visual.relevance
        )
    assert len(counts) > 1


def test_each_picture_and_all_together(engine: Pipeline, pictures: list[Image.Image]) -> None:
    asked: dict[str, Any] = {"images": pictures, "max_new_tokens": 4, "keep": "auto"}
    together = engine.generate(QUESTION, **asked).visual
    each = engine.generate(QUESTION, **asked, rank="each").visual
    assert together.relevance is not None
    assert set(together.indices.tolist()) == fewest(together.relevance)
    for number in range(len(pictures)):
        here = np.flatnonzero(each.picture == number)
        kept = {int(here[one]) for one in fewest(together.relevance[here])}
        assert kept == set(each.indices.tolist()) & set(here.tolist())


def test_another_text_ranks(engine: Pipeline, pictures: list[Image.Image]) -> None:
    asked: dict[str, Any] = {"images": pictures[:1], "keep": "auto", "max_new_tokens": 4}
    mixed = engine.generate(QUESTION, **asked, rank_by=OTHER).visual
    assert np.array_equal(mixed.indices, engine.generate(OTHER, **asked).visual.indices)


def test_batches_streams_and_encoded_pictures(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    """Prompts of a batch are as long as their relevance says, which is not known beforehand."""
    ways: list[dict[str, Any]] = [
        {"images": pictures[:1], "keep": "auto"}, {"images": pictures, "keep": 0.25},
        {"images": pictures, "keep": "auto", "rank": "each"}, {"images": pictures[2:], "keep": 1.0},
    ]  # fmt: skip
    if engine.backend == "tensorrt":
        ways = ways[:1]
    # Long answers: a row of a batch whose positions were off would go another way.
    how: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    requests = [Request("Describe the picture.", **way, **how) for way in ways]
    for answer, way in zip(engine.generate_batch(requests), ways, strict=True):
        alone = engine.generate("Describe the picture.", **way, **how)
        assert answer.token_ids == alone.token_ids
        assert np.array_equal(answer.visual.indices, alone.visual.indices)
        assert answer.prompt_tokens == alone.prompt_tokens
        with engine.stream("Describe the picture.", **way, **how) as stream:
            text = "".join(stream)
        assert (text, stream.answer.token_ids) == (alone.text, alone.token_ids)
    seen = engine.encode(images=pictures[:1])
    alone = engine.generate(QUESTION, images=pictures[:1], keep="auto", max_new_tokens=4)
    assert seen.generate(QUESTION, keep="auto", max_new_tokens=4).token_ids == alone.token_ids


def test_the_compressor_runs_once(
    engine: Pipeline, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    compressor = engine._backend.engines["compressor"]
    run = compressor.run

    def counted(*given: Any, **how: Any) -> Any:
        runs.append(1)
        return run(*given, **how)

    monkeypatch.setattr(compressor, "run", counted)
    engine.generate(QUESTION, images=pictures[:1], keep="auto", max_new_tokens=1)
    assert len(runs) == 1


def test_checks_before_any_work_take_the_most(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    watching, watched = watch(engine)
    asked: dict[str, Any] = {"images": pictures[:1], "max_new_tokens": 2}
    answer = watching.generate(QUESTION, **asked, keep="auto")
    most = watching.generate(QUESTION, **asked, keep=AUTO_KEEP.most)
    assert answer.visual.kept < most.visual.kept
    prepared = watching._preparation.prepare
    del watched

    def planned(keep: Any) -> int:
        from foveate.runtime.stopping import Stop

        one = prepared(Request(QUESTION, **asked, keep=keep), Stop())
        return one.generation.prompt_tokens

    assert planned("auto") == planned(AUTO_KEEP.most) == most.prompt_tokens


def with_compressor(pipe: Pipeline, **changes: Any) -> Pipeline:
    """The same pipeline, of a bundle whose manifest says other things of its compressor."""
    facts: CompressorFacts = replace(pipe.bundle.manifest.compressor, **changes)
    watching, _ = watch(pipe)
    manifest = replace(pipe.bundle.manifest, compressor=facts)
    watching.bundle = type(pipe.bundle)(pipe.bundle.root, manifest)
    return watching


def test_a_bundles_default(engine: Pipeline, pictures: list[Image.Image]) -> None:
    usual = with_compressor(engine, keep="auto")
    asked: dict[str, Any] = {"images": pictures[:1], "max_new_tokens": 2}
    auto = engine.generate(QUESTION, **asked, keep="auto").visual
    assert np.array_equal(usual.generate(QUESTION, **asked).visual.indices, auto.indices)


def test_a_bundle_that_was_not_calibrated_refuses(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    with pytest.raises(
        KeepError, match=r"does not say what that keeps; export it with .*auto-keep"
    ):
        with_compressor(engine, auto=None).generate(QUESTION, images=pictures[:1], keep="auto")
