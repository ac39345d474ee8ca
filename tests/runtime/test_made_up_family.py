"""A family of another kind on both of onnxruntime's backends: candidates, taps and overlapping boxes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline, families
from foveate.bundle.reader import Bundle
from foveate.calibration.boxes import Box, ShownTokens
from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.bundle import BundleScene, LoadedBundle
from foveate.calibration.evaluation.ways import choices
from foveate.errors import BundleError, KeepError
from foveate.families.base import Prompt, VisualInput, user_turn
from foveate.runtime.heatmap import draw_heatmaps, token_map
from foveate.runtime.keep import select
from foveate.runtime.tensors import on_host
from tests.runtime.made_up_family import (
    NAME,
    NEWLINES,
    TOKENS,
    WIDE,
    MadeUp,
    expected_embeds,
    write_bundle,
)
from tests.runtime.watched import watch

EMBEDS = 1e-5
"""Of the largest value: float32 products and sums in another order."""
SCORES = 1e-4
"""Relative: float32 sums in another order, through the probe and f_θ."""
QUESTION = "What shape has the letter K?"


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    """The made-up family among those that are known."""
    families._FAMILIES[NAME] = MadeUp
    yield
    del families._FAMILIES[NAME]


@pytest.fixture(scope="module", params=["nano_bundle", "contrib_bundle"])
def pipe(
    registered: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """The made-up family on graphs of either operators."""
    nano: Bundle = request.getfixturevalue(request.param)
    bundle = write_bundle(nano, tmp_path_factory.mktemp("made_up") / "bundle")
    with Pipeline.load(bundle.root, device="cpu") as pipeline:
        assert isinstance(pipeline._family, MadeUp)
        yield pipeline


@pytest.fixture(scope="module")
def two(pictures: list[Image.Image]) -> list[Image.Image]:
    return pictures[:2]


def prepared(pipe: Pipeline, pictures: list[Image.Image]) -> tuple[VisualInput, Prompt]:
    """The pictures, and a prompt about them."""
    visual = pipe._family.prepare(pictures)
    return visual, pipe._family.layout(user_turn(QUESTION, pictures), visual)


def newlines(count: int) -> list[int]:
    """The ordinals of the newlines of so many pictures."""
    return [int(one) + TOKENS * number for number in range(count) for one in NEWLINES]


def test_a_bundle_that_cannot_sum_rows_is_refused(pipe: Pipeline, two: list[Image.Image]) -> None:
    engines = dict(pipe._backend.engines)  # type: ignore[attr-defined]
    visual, _ = prepared(pipe, two)
    gather = engines.pop("gather_visual")
    backend: Any = pipe._backend
    whole, backend.engines = backend.engines, engines
    try:
        with pytest.raises(BundleError, match=r"no graph gather_visual, .* export the checkpoint"):
            backend.encode(visual)
    finally:
        backend.engines = whole
    assert whole["gather_visual"] is gather


def test_tokens_are_taps_of_the_graphs_real_rows(pipe: Pipeline, two: list[Image.Image]) -> None:
    """The graph's rows after the real ones are NaN: one of them in a sum would show."""
    for pictures in (two, two[:1]):
        visual, _ = prepared(pipe, pictures)
        wanted = expected_embeds(visual)
        for lasting in (False, True):
            held = pipe._backend.encode(visual, lasting=lasting)
            embeds = on_host(held)
            assert (embeds.dtype, embeds.shape) == (np.float32, (TOKENS * len(pictures), 256))
            assert np.abs(embeds - wanted).max() <= EMBEDS * np.abs(wanted).max()


@pytest.mark.parametrize("keep", [0.25, 5, 2])
def test_candidates_compete_and_the_rest_stays(
    pipe: Pipeline, two: list[Image.Image], keep: float | int
) -> None:
    visual, prompt = prepared(pipe, two)
    backend, candidates = pipe._backend, visual.candidates
    selection = select(visual, keep)
    wanted = keep if isinstance(keep, int) else round(keep * candidates.sum())
    assert selection.count == wanted + len(newlines(2))
    embeds = backend.encode(visual)
    kept = backend.compress(embeds, backend.stage(prompt, selection))
    chosen = kept.selection()
    assert set(newlines(2)) < set(chosen.indices.tolist())
    assert len(chosen.indices) == selection.count
    assert kept.scores is not None and chosen.relevance is not None
    scores, kept_ones = kept.scores.numpy(), np.zeros(visual.tokens, bool)
    kept_ones[chosen.indices] = True
    assert scores[candidates & kept_ones].min() >= scores[candidates & ~kept_ones].max()
    assert chosen.relevance.sum() == pytest.approx(1, abs=1e-5)

    places = np.sort(np.concatenate([prompt.text_index, prompt.visual_index[chosen.indices]]))
    assert np.array_equal(kept.kept_index, places)
    positions: Any = kept.position_ids
    assert np.array_equal(positions, prompt.position_ids[:, None, places])
    whole = np.zeros((len(prompt.token_ids), 256), np.float32)
    table = backend.table  # type: ignore[attr-defined]
    whole[prompt.text_index] = table.look_up(prompt.token_ids[prompt.text_index])
    whole[prompt.visual_index] = on_host(embeds)
    assert np.array_equal(on_host(kept.embeds)[0, : kept.length], whole[places])


def test_scores_are_those_of_both_operators(
    registered: None,
    nano_bundle: Bundle,
    contrib_bundle: Bundle,
    two: list[Image.Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    found = []
    for nano in (nano_bundle, contrib_bundle):
        bundle = write_bundle(nano, tmp_path_factory.mktemp("both") / "bundle")
        with Pipeline.load(bundle.root, device="cpu") as pipe:
            answer = pipe.generate(QUESTION, images=two, keep=0.25, max_new_tokens=6)
            found.append(answer)
    assert found[0].token_ids == found[1].token_ids
    assert np.array_equal(found[0].visual.indices, found[1].visual.indices)
    relevance = [answer.visual.relevance for answer in found]
    np.testing.assert_allclose(relevance[0], relevance[1], rtol=SCORES, atol=1e-7)


def test_a_whole_request(pipe: Pipeline, two: list[Image.Image]) -> None:
    options: dict[str, Any] = {"images": two, "max_new_tokens": 6, "ignore_eos": True}
    answer = pipe.generate(QUESTION, **options, keep=0.25)
    assert len(answer.token_ids) == 6
    assert (answer.visual.total, answer.visual.pictures) == (2 * TOKENS, 2)
    named = pipe.generate(QUESTION, **options, kept=answer.visual.indices)
    assert named.token_ids == answer.token_ids
    fewer = [one for one in answer.visual.indices.tolist() if one not in newlines(2)]
    again = pipe.generate(QUESTION, **options, kept=fewer)
    assert np.array_equal(again.visual.indices, answer.visual.indices)
    assert (
        pipe.encode(images=two)
        .generate(QUESTION, max_new_tokens=6, ignore_eos=True, keep=0.25)
        .token_ids
        == answer.token_ids
    )
    each = pipe.generate(QUESTION, **options, keep=3, rank="each")
    kept = np.bincount(each.visual.picture[each.visual.indices])
    assert kept.tolist() == [3 + len(NEWLINES)] * 2
    with pytest.raises(KeepError, match=f"the request has {2 * TOKENS - len(newlines(2))}"):
        pipe.generate(QUESTION, **options, keep=2 * TOKENS)


def test_keeping_all_is_naming_all(pipe: Pipeline, two: list[Image.Image]) -> None:
    seen = []
    for way in ({"keep": 1.0}, {"kept": range(2 * TOKENS)}):
        watching, watched = watch(pipe)
        watching.generate(QUESTION, images=two, max_new_tokens=4, ignore_eos=True, **way)
        seen.append(np.stack(watched.seen))
    assert np.array_equal(seen[0], seen[1])


# Overlapping boxes


def test_the_maximum_of_overlapping_boxes_is_shown(pipe: Pipeline, two: list[Image.Image]) -> None:
    """Cells of a 4 x 3 grid lie under one box of the wide view and one of the fine; newlines show nothing."""
    visual, _ = prepared(pipe, two)
    values = np.random.default_rng(2).random(visual.tokens)
    values[newlines(2)] = 9
    for number in range(2):
        own = values[TOKENS * number : TOKENS * (number + 1)]
        wide = own[: WIDE**2].reshape(WIDE, WIDE)
        fine = own[WIDE**2 :].reshape(4, 4)[:, :3]
        # The middle column's middle is the border of the wide view's columns, and counts to the right.
        under = wide[np.array([0, 0, 1, 1])[:, None], np.array([0, 1, 1])]
        assert np.array_equal(token_map(values, visual, number), np.maximum(fine, under))
    kept = np.zeros(visual.tokens, bool)
    kept[[*newlines(2), 1]] = True
    assert np.flatnonzero(token_map(kept, visual, 0)).tolist() == [1, 2, 4, 5]
    assert not token_map(kept, visual, 1).any()


def test_a_heatmap_is_drawn(pipe: Pipeline, two: list[Image.Image]) -> None:
    answer = pipe.generate(QUESTION, images=two, keep=0.25, max_new_tokens=1)
    drawn = draw_heatmaps(two, answer.visual)
    assert drawn.mode == "RGB"
    assert len(np.unique(np.asarray(drawn))) > 50


def test_a_fixed_number_of_tokens_is_pooled(pipe: Pipeline, two: list[Image.Image]) -> None:
    seen = pipe.encode(images=two)
    smaller = seen.smaller([1, 2])
    assert smaller.visual.picture.tolist() == [0, 1, 1]
    found, whole = on_host(smaller.embeds), on_host(seen.embeds)
    wide = whole[:4].mean(0), *(whole[TOKENS : TOKENS + 4].reshape(2, 2, -1).mean(0))
    assert np.abs(found - np.stack(wide)).max() <= EMBEDS * np.abs(whole).max()
    assert smaller.generate(QUESTION, keep=1.0, max_new_tokens=2).visual.total == 3


def test_evaluation_leaves_what_stays_out_of_all_choices(
    pipe: Pipeline, two: list[Image.Image]
) -> None:
    scene = BundleScene(LoadedBundle(pipe, ["attention"], 2, 4), pipe.encode(images=two[:1]))
    record = Record("1", (Path("a.png"),), QUESTION, ("K",), boxes=(Box(0, (0.0, 0.0, 0.5, 0.5)),))
    shown = ShownTokens.of(scene.visual, record.boxes)
    assert shown.asked.any()
    assert not shown.asked[NEWLINES].any()
    made = choices(scene, record, None, shown, ["attention"], [0.25, 4], "Describe it.", 0)
    kept = {(one.way, one.keep): one.kept.tolist() for one in made}
    assert all(set(NEWLINES.tolist()) <= set(one) for one in kept.values())
    count = {key: len(one) - len(NEWLINES) for key, one in kept.items()}
    free = TOKENS - len(NEWLINES)
    assert count["own", 0.25] == count["random", 0.25] == free // 4
    assert count["neutral", 4] == count["centre", 4] == count["without", 4] == 4
    assert count["one-token", None] == 1
    assert count["all-but-it", None] == free - shown.touched.sum()
    texts = scene.answers(QUESTION, [np.array(one) for one in kept.values()])
    assert len(texts) == len(kept)
