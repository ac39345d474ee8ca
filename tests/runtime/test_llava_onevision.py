"""LLaVA-OneVision's bundles against transformers: greedy tokens are the same, with all visual tokens or some."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.families.base import Medium, Message, Video, opened, user_turn
from foveate.runtime.heatmap import draw_heatmaps, token_map
from foveate.runtime.tensors import on_host
from tests.exported import export_tiny
from tests.llava_onevision import Reference, film, noise, write_checkpoint

QUESTION = "What can be seen in the two pictures?"
TOKENS = 4
PICTURES: dict[str, list[Medium]] = {
    "tall": [noise(100, 60)],
    "wide": [noise(60, 170)],
    "one tile": [noise(54, 54)],
    "small": [noise(9, 14)],
    "just interpolated": [noise(150, 320)],
    "strip": [noise(10, 600)],
    "column": [noise(330, 20)],
    "two tiles": [noise(50, 108)],
}
SEVERAL: dict[str, list[Medium]] = {
    f"{count} of {size}": [noise(size + 31 * place, 90, place) for place in range(count)]
    for count in (2, 3, 4, 5)
    for size in (30, 100)
}
VIDEOS: dict[str, list[Medium]] = {
    f"{frames} frames of {height}": [film(frames, height)]
    for frames in (1, 2, 5, 8)
    for height in (30, 110)
}
MIXED: dict[str, list[Medium]] = {
    "video, picture": [film(2), noise(70, 70)],
    "picture, video": [noise(60, 130), film(3)],
    "picture, video, picture": [noise(30, 80), film(2), noise(80, 81)],
    "two videos": [film(2), film(2, 60)],
    "two videos, picture": [film(1), film(3), noise(40, 41)],
    "picture, two videos": [noise(200, 100), film(2), film(2, 20)],
    "pictures, video": [noise(20, 20), noise(90, 30), film(4)],
    "video, pictures": [film(1), noise(50, 20), noise(20, 90)],
}
ALL = {
    f"{kind}: {name}": media
    for kind, several in (
        ("picture", PICTURES), ("several", SEVERAL), ("video", VIDEOS), ("mixed", MIXED),
    )
    for name, media in several.items()
}  # fmt: skip
CLOSE = 1e-5
"""Of the largest value: float32 sums in another order."""


@pytest.fixture(scope="module")
def reference(llava_checkpoint: Path) -> Reference:
    """Transformers on the checkpoint."""
    return Reference(llava_checkpoint)


@pytest.fixture(scope="module")
def standard(llava_bundle: Bundle) -> Iterator[Pipeline]:
    """The bundle of standard operators."""
    with Pipeline.load(llava_bundle.root, device="cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def contrib(llava_contrib_bundle: Bundle) -> Iterator[Pipeline]:
    """The bundle of contrib operators."""
    with Pipeline.load(llava_contrib_bundle.root, device="cpu") as pipe:
        yield pipe


def carried(messages: Sequence[Message], media: Sequence[Medium]) -> list[Message]:
    """Messages whose parts carry their pictures and frames."""
    shown = iter(media)

    def part(one: Any) -> Any:
        if one["type"] == "text":
            return one
        medium = next(shown)
        frames = [opened(f) for f in medium.frames] if isinstance(medium, Video) else medium
        return {"type": one["type"], one["type"]: frames}

    return [{**turn, "content": [*map(part, turn["content"])]} for turn in messages]


def kept_places(
    pipe: Pipeline, messages: Sequence[Message], media: Sequence[Medium], kept: Any
) -> Any:
    """Ordinals of visual tokens in the prompt's order, which the template may change."""
    family = pipe._family
    prompt = family.layout(messages, family.plan(media))
    whole = np.sort(prompt.visual_index)
    return np.searchsorted(whole, np.sort(prompt.visual_index[kept]))


@pytest.mark.parametrize("name", ALL)
def test_greedy_tokens_are_those_of_transformers(
    standard: Pipeline, contrib: Pipeline, reference: Reference, name: str
) -> None:
    """transformers takes no videos of unequal length together; those go by its language model alone."""
    both = (standard, contrib)
    media = ALL[name]
    messages = user_turn(QUESTION, media)
    request = reference.prepare(messages, media)
    ask: dict[str, Any] = {"max_new_tokens": TOKENS}
    wholes = [pipe.generate(carried(messages, media), keep=1.0, **ask) for pipe in both]
    several = len({video.shape for video in request.videos}) > 1
    every = np.arange(wholes[0].visual.total)
    wanted = (
        reference.generate_kept(request, every, TOKENS)
        if several
        else reference.generate(request, TOKENS)
    )
    assert [answer.token_ids for answer in wholes] == [wanted] * 2

    one, other = (pipe.generate(carried(messages, media), keep=0.3, **ask) for pipe in both)
    visual = both[0]._family.plan(media)
    always, candidates = np.flatnonzero(~visual.candidates), int(visual.candidates.sum())
    assert one.visual.always == len(always)
    assert set(always) <= set(one.visual.indices.tolist())
    assert one.visual.kept == len(always) + max(1, int(candidates * 0.3 + 0.5))
    np.testing.assert_array_equal(one.visual.indices, other.visual.indices)
    places = kept_places(both[0], messages, media, one.visual.indices)
    wanted = reference.generate_kept(request, places, TOKENS)
    assert [answer.token_ids for answer in (one, other)] == [wanted] * 2


def test_answers_hang_on_what_is_seen(standard: Pipeline) -> None:
    """Else the same tokens would say nothing."""
    answers = {
        tuple(standard.generate(carried(user_turn(QUESTION, media), media), max_new_tokens=TOKENS).token_ids)
        for media in ALL.values()
    }  # fmt: skip
    assert len(answers) > len(ALL) - 4


def test_turns_with_pictures_follow_each_other(
    standard: Pipeline, contrib: Pipeline, reference: Reference
) -> None:
    """A picture of each turn: both have one tile, as transformers has them."""
    media: list[Medium] = [noise(60, 90), film(2), noise(90, 60)]
    image, video, text = ({"type": kind} for kind in ("image", "video", "text"))
    messages: list[Message] = [
        {"role": "user", "content": [image, {**text, "text": "What is it?"}]},
        {"role": "assistant", "content": [{**text, "text": "A picture."}]},
        {"role": "user", "content": [video, {**text, "text": "And now?"}, image]},
    ]
    request = reference.prepare(messages, media)
    wanted = reference.generate(request, TOKENS)
    for pipe in (standard, contrib):
        given = carried(messages, media)
        found = pipe.generate(given, keep=1.0, max_new_tokens=TOKENS)
        assert found.token_ids == wanted
        some = pipe.generate(given, keep=0.5, max_new_tokens=TOKENS)
        places = kept_places(pipe, messages, media, some.visual.indices)
        assert some.token_ids == reference.generate_kept(request, places, TOKENS)


@pytest.mark.parametrize("name", ["picture: just interpolated", "mixed: picture, video, picture"])
def test_visual_tokens_are_transformers(
    standard: Pipeline, contrib: Pipeline, reference: Reference, name: str
) -> None:
    media = ALL[name]
    messages = user_turn(QUESTION, media)
    wanted = reference.prepare(messages, media).visual_embeds.numpy()
    for pipe in (standard, contrib):
        visual = pipe._family.prepare(media)
        order = np.argsort(pipe._family.layout(messages, visual).visual_index)
        for lasting in (False, True):
            tokens = pipe._backend.encode(visual, lasting=lasting)
            found = on_host(tokens)[order]
            assert np.abs(found - wanted).max() <= CLOSE * np.abs(wanted).max()


def test_pictures_encoded_before_give_the_same_answer(
    standard: Pipeline, contrib: Pipeline
) -> None:
    pictures = [noise(100, 60)]
    for pipe in (standard, contrib):
        whole = pipe.generate(QUESTION, images=pictures, keep=0.3, max_new_tokens=TOKENS)
        seen = pipe.encode(images=pictures)
        assert seen.generate(QUESTION, keep=0.3, max_new_tokens=TOKENS).token_ids == whole.token_ids


def test_limits_on_pixels_give_fewer_tiles(standard: Pipeline) -> None:
    ask: dict[str, Any] = {"images": [noise(300, 300)], "max_new_tokens": 1}
    whole = standard.generate(QUESTION, **ask)
    small = standard.generate(QUESTION, **ask, max_pixels=108 * 108)
    assert small.visual.total < 900 < whole.visual.total


def test_the_memory_of_a_run_is_that_of_its_tiles(standard: Pipeline) -> None:
    """A run has one tile of 169 rows and a newline, however large the picture is."""
    backend: Any = standard._backend
    assert backend.memory.patches == 1
    for media in ALL.values():
        assert backend.largest_run(standard._family.plan(media)) == 170


def test_overlapping_boxes_are_drawn_by_their_maximum(standard: Pipeline) -> None:
    picture = noise(60, 100)
    answer = standard.generate(QUESTION, images=[picture], keep=0.3, max_new_tokens=1)
    visual = answer.visual
    assert visual.relevance is not None
    cells = token_map(visual.relevance, visual, 0)
    assert visual.relevance[visual.boxes[:, 2] > 0].max() == cells.max()
    # A cell under a token of the whole picture's tile and one of the finer ones has the larger value.
    whole, fine = visual.boxes[5 * 13 + 5], visual.boxes[13**2 + 6 * 27 + 10]
    values = np.zeros(visual.total)
    values[5 * 13 + 5], values[13**2 + 6 * 27 + 10] = 1, 2
    shown = token_map(values, visual, 0)
    assert whole[0] <= fine[0]
    assert fine[2] <= whole[2]
    assert set(np.unique(shown).tolist()) == {0, 1, 2}
    drawn = draw_heatmaps([picture], visual)
    assert isinstance(drawn, Image.Image)


def test_the_real_geometry(tmp_path: Path) -> None:
    """384 pixels, 27 x 27 patches, all pinpoints; two pictures that are just not, and just, interpolated."""
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", side=384, patch=14, layers=1, vision_width=8,
        vision_layers=2, feature_layer=-2,
    )  # fmt: skip
    bundle = export_tiny(checkpoint, tmp_path / "bundle", operators="contrib")
    reference = Reference(checkpoint)
    with Pipeline.load(bundle.root, device="cpu") as pipe:
        for width, count, taps in ((1405, 8748, 1), (1408, 7209, 4)):
            media: list[Medium] = [noise(1152, width)]
            visual = pipe._family.prepare(media)
            assert visual.weights is not None
            assert (visual.tokens, int((visual.weights > 0).sum(axis=1).max())) == (count, taps)
            wanted = reference.prepare(user_turn(QUESTION, media), media).visual_embeds.numpy()
            tokens = pipe._backend.encode(visual)
            found = on_host(tokens)
            assert np.abs(found - wanted).max() <= CLOSE * np.abs(wanted).max()
        for media in ([noise(200, 130)], [film(2)], [noise(100, 90), noise(60, 90)]):
            messages = user_turn(QUESTION, media)
            request = reference.prepare(messages, media)
            whole = pipe.generate(carried(messages, media), keep=1.0, max_new_tokens=2)
            assert whole.token_ids == reference.generate(request, 2)
            some = pipe.generate(carried(messages, media), keep=0.1, max_new_tokens=2)
            places = kept_places(pipe, messages, media, some.visual.indices)
            assert some.token_ids == reference.generate_kept(request, places, 2)
