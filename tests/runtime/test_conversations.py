"""Conversations through the whole pipeline, against transformers and between engines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from foveate import Pipeline, Request
from foveate.bundle.reader import Bundle
from foveate.errors import FoveateError, ImageError, LimitError, PromptError
from foveate.families.base import Video, user_turn
from foveate.runtime.load import read_family, read_tokenizer
from foveate.runtime.stopping import Stop
from tests.conftest import NANO, Sample
from tests.reference import Reference

SHOWN = {"type": "image"}
QUESTION = "What shape has the letter K?"


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture
def pipe(open_engine: Callable[[str], Pipeline]) -> Pipeline:
    """The nano checkpoint on standard operators."""
    return open_engine("standard")


def say(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def conversation(*places: Any) -> list[dict[str, Any]]:
    """Three turns that show a picture each in the first and the last, and begin an answer if wanted."""
    first, last = places or (SHOWN, SHOWN)
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [first, say("How many stars are there?")]},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": [last, say(QUESTION)]},
    ]


@torch.no_grad()
def answered(reference: Reference, pipe: Pipeline, messages: Any, media: Any) -> list[int]:
    """Greedy tokens of transformers' generate; ids of the family tests' golden layout."""
    family = read_family(pipe.bundle, read_tokenizer(pipe.bundle))
    visual = family.prepare(media)
    ids = torch.from_numpy(family.layout(messages, visual).token_ids)[None]
    config, given = reference.model.config, {}
    for kind, name in ((Image.Image, ""), (Video, "_videos")):
        ours = [one for one in media if isinstance(one, kind)]
        if ours:
            prepared: Any = family.prepare(ours)
            grids = torch.tensor([[t, 2 * h, 2 * w] for t, h, w in prepared.grids])
            parts = [np.concatenate(call.inputs["pixel_values"]) for call in prepared.calls]
            pixels = torch.from_numpy(np.concatenate(parts))
            given |= {f"pixel_values{name}": pixels}
            given |= {"video_grid_thw" if name else "image_grid_thw": grids}
    kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    out = reference.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **given,
        max_new_tokens=8, do_sample=False,
    )  # fmt: skip
    return reference.without_stop(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("ending", [[], [{"role": "assistant", "content": "a "}]])
def test_answers_are_those_of_transformers(
    pipe: Pipeline, reference: Reference, pictures: list[Image.Image], ending: list[Any]
) -> None:
    messages = [*conversation(), *ending]
    answer = pipe.generate(messages, images=pictures[:2], keep=1.0, max_new_tokens=8)
    assert answer.token_ids == answered(reference, pipe, messages, pictures[:2])
    assert answer.visual.pictures == 2


def test_pictures_and_videos_in_one_conversation(
    pipe: Pipeline, reference: Reference, pictures: list[Image.Image]
) -> None:
    frames = [np.asarray(pictures[0].resize((84, 112)).rotate(turn)) for turn in (0, 180, 0, 90)]
    film = Video(tuple(map(Image.fromarray, frames)))
    for places, media in (
        (({"type": "video"}, SHOWN), [film, pictures[1]]),
        ((SHOWN, {"type": "video"}), [pictures[1], film]),
    ):
        messages = conversation(*places)
        answer = pipe.generate(
            messages, images=[pictures[1]], video=frames, keep=1.0, max_new_tokens=8
        )
        assert answer.token_ids == answered(reference, pipe, messages, media)
    two = conversation({"type": "video", "video": frames}, {"type": "video", "video": frames[::-1]})
    assert pipe.generate(two, keep=0.5, max_new_tokens=2).visual.pictures == 4


def test_every_way_to_give_pictures_is_the_same(
    engine: Pipeline, pictures: list[Image.Image], tmp_path: Path
) -> None:
    path = tmp_path / "scene.png"
    pictures[0].save(path)
    options: dict[str, Any] = {"keep": 0.3, "max_new_tokens": 2}
    wanted = engine.generate(conversation(), images=pictures[:2], **options)
    carried = {"type": "image", "image": pictures[1]}
    by_path = {"type": "image", "path": str(path)}
    answers = [
        engine.generate(conversation(by_path, carried), **options),
        engine.generate(conversation(SHOWN, carried), images=iter(pictures[:1]), **options),
        engine.generate(conversation(), encoded=engine.encode(images=pictures[:2]), **options),
        engine.encode(images=pictures[:2]).generate(conversation(), **options),
        *engine.generate_batch([Request(conversation(), images=pictures[:2], **options)]),
    ]
    for answer in answers:
        assert answer.token_ids == wanted.token_ids
        assert np.array_equal(answer.visual.indices, wanted.visual.indices)


def test_the_last_user_turn_ranks(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    """Whether an answer is begun or not; and not the turns before it."""
    messages = user_turn(QUESTION, pictures)
    options: dict[str, Any] = {"keep": 0.25, "max_new_tokens": 1}
    seen = pipe.encode(images=pictures)
    plain = seen.generate(QUESTION, **options)
    begun = [*messages, {"role": "assistant", "content": "a circle"}]
    assert np.array_equal(seen.generate(begun, **options).visual.indices, plain.visual.indices)
    later = [*begun, {"role": "user", "content": "How many stars are there?"}]
    other = seen.generate(later, **options).visual.indices
    assert not np.array_equal(other, plain.visual.indices)
    instruction = pipe._preparation.prepare(Request(later, encoded=seen), Stop()).prompt
    said = instruction.token_ids[instruction.instruction_index].tolist()
    assert pipe._tokenizer.decode(said) == "How many stars are there?"


def test_a_question_before_its_pictures_ranks_as_one_after_them(
    engine: Pipeline, pictures: list[Image.Image]
) -> None:
    """Also where a picture stands before it and one after, of which no token of it could see the latter."""
    plain = engine.generate(QUESTION, images=pictures[:2], keep=0.25, max_new_tokens=1).visual
    for content in ([say(QUESTION), SHOWN, SHOWN], [SHOWN, say(QUESTION), SHOWN]):
        messages = [{"role": "user", "content": content}]
        given = engine.generate(messages, images=pictures[:2], keep=0.25, max_new_tokens=1).visual
        assert np.array_equal(given.indices, plain.indices)
        np.testing.assert_allclose(given.relevance, plain.relevance, rtol=1e-4)
    other = engine.generate(
        [{"role": "user", "content": [say(QUESTION), SHOWN, SHOWN]}],
        images=pictures[:2], keep=0.25, max_new_tokens=1, rank_by="How many stars are there?",
    ).visual  # fmt: skip
    assert not np.array_equal(other.indices, plain.indices)


def test_a_conversation_without_pictures(engine: Pipeline, reference: Reference) -> None:
    messages = [
        {"role": "user", "content": "How many stars are there?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": QUESTION},
    ]
    answer = engine.generate(messages, max_new_tokens=8)
    assert answer.token_ids == answered(reference, engine, messages, [])
    assert (answer.visual.total, answer.visual.kept, answer.visual.relevance) == (0, 0, None)


REFUSED: list[tuple[dict[str, Any], type[FoveateError], str]] = [
    ({"images": []}, PromptError, "none for picture or video 1"),
    ({"images": [0]}, PromptError, "none for picture or video 2"),
    ({"images": [0, 1, 2]}, PromptError, "more than the 2"),
    ({"images": [0, 1], "video": [0]}, PromptError, "more than the 0"),
    ({"video": [0]}, PromptError, "none for picture or video 1"),
    ({"images": "scene.png"}, ImageError, "pass a list"),
    (
        {"prompt": conversation(SHOWN, {"type": "image", "image": 7}), "images": [0]},
        ImageError,
        "int",
    ),
    ({"prompt": "What?", "images": [0], "max_pixels": 0}, LimitError, "max_pixels is 0"),
    ({"prompt": "What?", "images": [0], "max_pixels": True}, LimitError, "max_pixels is True"),
    ({"prompt": "What?", "images": [0], "max_pixels": 5e5}, LimitError, "max_pixels is 500000.0"),
    ({"prompt": "What?", "images": [0], "max_pixels": "1"}, LimitError, "max_pixels is '1'"),
    ({"prompt": "What?", "images": [0], "min_pixels": -1}, LimitError, "min_pixels is -1"),
    ({"prompt": "What?", "images": [0], "min_pixels": 9, "max_pixels": 8}, LimitError, "give both"),
    ({"prompt": "What?", "images": [0], "min_pixels": 10**9}, LimitError, "give both"),
]


@pytest.mark.parametrize(("change", "error", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_fit_together_is_refused(
    pipe: Pipeline,
    pictures: list[Image.Image],
    change: dict[str, Any],
    error: type[FoveateError],
    words: str,
) -> None:
    request = {"prompt": conversation(), **change}
    for name in {"images", "video"} & request.keys():
        if isinstance(request[name], list):
            request[name] = [pictures[number] for number in request[name]]
    with pytest.raises(error, match=words) as caught:
        pipe.generate(request.pop("prompt"), **request)
    assert "\n" not in str(caught.value)


def test_encoded_pictures_agree_with_their_places(
    pipe: Pipeline, pictures: list[Image.Image]
) -> None:
    seen = pipe.encode(images=pictures[:1])
    with pytest.raises(PromptError, match="places for 2 pictures, and 1 picture"):
        seen.generate(conversation())
    carried = conversation(SHOWN, {"type": "image", "image": pictures[1]})
    with pytest.raises(ImageError, match="leave out images"):
        seen.generate(carried)
    with pytest.raises(LimitError, match="have their size"):
        seen.generate(QUESTION, max_pixels=9999)


LIMITS: list[dict[str, Any]] = [
    {"max_pixels": 100 * 100},
    {"min_pixels": 180 * 180},
    {"min_pixels": 1, "max_pixels": 28 * 28},
    {"min_pixels": np.int64(120 * 120), "max_pixels": np.int32(150 * 150)},
]


@pytest.mark.parametrize("limits", LIMITS, ids=range(len(LIMITS)))
def test_pixels_of_a_request_are_the_image_processors(
    pipe: Pipeline, reference: Reference, pictures: list[Image.Image], limits: dict[str, Any]
) -> None:
    """The same answer as with transformers' image processor that was made with these limits."""
    plain = {name: int(value) for name, value in limits.items()}
    processor = Qwen2VLImageProcessorPil.from_pretrained(NANO, **plain)
    question = "What letter is in the red square?"
    theirs = processor(pictures, return_tensors="pt")
    ask = {"images": pictures, "keep": 1.0, "max_new_tokens": 8, **limits}
    answer = pipe.generate(question, **ask)
    grids = theirs["image_grid_thw"].numpy()
    assert answer.visual.total == grids.prod(1).sum() // 4
    wanted = reference.generate(
        replace_processor(reference, processor).prepare(question, pictures), 8
    )
    assert answer.token_ids == wanted[0]
    seen = pipe.encode(images=pictures, **limits)
    assert seen.generate(question, keep=1.0, max_new_tokens=8).token_ids == answer.token_ids


def replace_processor(reference: Reference, processor: Any) -> Reference:
    """The reference with another image processor."""
    other = object.__new__(Reference)
    other.__dict__.update(reference.__dict__, processor=processor)
    return other


def test_frames_are_limited_as_pictures_are(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    frames = [np.asarray(pictures[0])] * 2
    answer = pipe.generate(QUESTION, video=frames, max_pixels=100 * 100, max_new_tokens=1)
    assert answer.visual.total <= 100 * 100 // 28**2


def test_marks_are_kept_in_the_text_by_option(pipe: Pipeline, samples: list[Sample]) -> None:
    """The checkpoint's word for a shape is made a special token, so that it answers with one."""
    options: dict[str, Any] = {
        "images": [samples[0].image], "keep": 1.0, "max_new_tokens": 12
    }  # fmt: skip
    plain = pipe.generate("Describe the picture.", **options)
    tokenizer = read_tokenizer(pipe.bundle)
    said = (tokenizer.id_to_token(token) for token in plain.token_ids)
    mark = next(word for word in said if word.isalpha())
    tokenizer.add_special_tokens([mark, "<|box_start|>"])
    marked = Pipeline(
        pipe.bundle, pipe._backend, pipe._language, read_family(pipe.bundle, tokenizer), tokenizer
    )
    skipped = marked.generate("Describe the picture.", **options)
    stream = marked.stream("Describe the picture.", **options, skip_special_tokens=False)
    pieces = "".join(stream)
    kept = stream.answer
    assert kept.token_ids == skipped.token_ids == plain.token_ids
    assert skipped.text == tokenizer.decode(plain.token_ids)
    assert kept.text == pieces == tokenizer.decode(plain.token_ids, skip_special_tokens=False)
    assert mark in kept.text and kept.text != skipped.text
    asked = marked.generate("Describe <|box_start|> the picture.", **options)
    assert asked.prompt_tokens == plain.prompt_tokens + 2
    for token in ("<|endoftext|>", "<|im_end|>", "<|vision_pad|>"):
        with pytest.raises(PromptError, match="control token"):
            marked.generate(f"Describe {token} the picture.", **options)


def test_a_stop_token_is_a_control_token(pipe: Pipeline, samples: list[Sample]) -> None:
    """One that no role and no template names, as generation_config.json may have."""
    tokenizer = read_tokenizer(pipe.bundle)
    tokenizer.add_special_tokens(["<|done|>"])
    prompt = user_turn("Is it <|done|>?", [])
    visual = read_family(pipe.bundle, tokenizer).prepare([])
    read_family(pipe.bundle, tokenizer).layout(prompt, visual)
    manifest = pipe.bundle.manifest
    eos = [*manifest.generation.eos, tokenizer.token_to_id("<|done|>"), 630]
    stopping = replace(manifest, generation=replace(manifest.generation, eos=eos))
    family = read_family(Bundle(pipe.bundle.root, stopping), tokenizer)
    with pytest.raises(PromptError, match=r"control token '<\|done\|>'"):
        family.layout(prompt, visual)
