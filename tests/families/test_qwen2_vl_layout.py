"""Prompts to tokens and positions, against transformers' processor and model. All integers: equal."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, processors
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from foveate.errors import BundleError, PromptError
from foveate.families.base import user_turn
from foveate.families.qwen2_vl import Qwen2VL
from foveate.families.qwen2_vl_pixels import Grid, GridInput, grid_boxes, shown_pictures
from tests.families.reference import (
    CONTROL,
    TEMPLATE,
    control_ids,
    counted_positions,
    lay_out,
    make_family,
    make_reference,
    train_tokenizer,
)

SIZES = [(100, 60), (60, 240), (84, 84)]
PROMPTS = [
    "What is in the red star?",
    " leading and trailing space \n",
    "two\n\nlines, a tab\tand  two spaces",
    "cafe\u0301 \u00c5ngstr\u00f6m \u212b \u65e5\u672c\u8a9e \U0001f469\u200d\U0001f52c",
    "{{ 7 * 7 }} {% raw %} <b>&amp;</b> \\n 'quoted' \"twice\"",
    "an ordinary glyphword, <|not_a_token|> and <| im_end |>",
    "x",
    "word " * 300,
]


def pictures(count: int) -> list[Image.Image]:
    """Grey pictures of unequal sizes."""
    return [Image.new("L", (width, height), 99) for height, width in SIZES[:count]]


def conversation(prompt: str, images: list[Image.Image]) -> list[dict[str, Any]]:
    """One user turn as transformers wants it."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]


def ask_reference(reference: Any, prompt: str, images: list[Image.Image]) -> Any:
    """Ids, grids and token types from the reference processor."""
    return reference.apply_chat_template(
        conversation(prompt, images),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_tokens_and_positions_are_the_references(
    family: Qwen2VL, reference: Any, model: Qwen2VLModel, prompt: str, count: int
) -> None:
    ours = lay_out(family, prompt, pictures(count))
    theirs = ask_reference(reference, prompt, pictures(count))
    np.testing.assert_array_equal(ours.token_ids, theirs["input_ids"][0].numpy())
    positions, delta = model.get_rope_index(
        theirs["input_ids"], theirs["mm_token_type_ids"], image_grid_thw=theirs["image_grid_thw"]
    )
    np.testing.assert_array_equal(ours.position_ids, positions[:, 0].numpy())
    assert ours.next_position == len(ours.token_ids) + int(delta)
    visual = theirs["mm_token_type_ids"][0].numpy().nonzero()[0]
    np.testing.assert_array_equal(ours.visual_index, visual)
    kinds = {array.dtype for array in (ours.token_ids, ours.visual_index, ours.instruction_index)}
    assert kinds | {ours.position_ids.dtype} == {np.dtype(np.int64)}


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_the_instruction_is_the_prompt(
    family: Qwen2VL, tokenizer: Tokenizer, prompt: str, count: int
) -> None:
    placed = lay_out(family, prompt, pictures(count))
    said = tokenizer.decode(
        placed.token_ids[placed.instruction_index].tolist(), skip_special_tokens=False
    )
    assert said == tokenizer.normalizer.normalize_str(prompt)
    assert not set(placed.instruction_index) & set(placed.visual_index)


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_without_pictures_it_is_plain_text(family: Qwen2VL, reference: Any, prompt: str) -> None:
    placed = lay_out(family, prompt, [])
    theirs = ask_reference(reference, prompt, [])["input_ids"][0].numpy()
    np.testing.assert_array_equal(placed.token_ids, theirs)
    np.testing.assert_array_equal(placed.position_ids, np.tile(np.arange(len(theirs)), (3, 1)))
    assert (placed.next_position, len(placed.visual_index)) == (len(theirs), 0)


def test_an_instruction_that_the_template_altered_is_found(tokenizer: Tokenizer) -> None:
    shouting = make_family(
        tokenizer, TEMPLATE.replace("{{ part['text'] }}", "{{ part['text'] | upper }}")
    )
    placed = lay_out(shouting, "what?", [])
    assert tokenizer.decode(placed.token_ids[placed.instruction_index].tolist()) == "WHAT?"


def visual_input(grids: list[Grid]) -> GridInput:
    """Pictures of these grids, without pixels."""
    picture = shown_pictures(grids, [1] * len(grids))
    return GridInput(
        calls=(),
        candidates=np.ones(len(picture), np.bool_),
        picture=picture,
        boxes=np.concatenate([grid_boxes(grid) for grid in grids]),
        grids=tuple(grids),
        moving=(False,) * len(grids),
    )


@pytest.mark.parametrize(
    "grids",
    [[(3, 2, 4)], [(2, 1, 2), (1, 2, 3)], [(9, 1, 2), (1, 2, 3), (5, 4, 3)], [(40, 1, 2)]],
    ids=str,
)
def test_pictures_of_several_frames_are_placed_in_time(
    family: Qwen2VL, tokenizer: Tokenizer, model: Qwen2VLModel, grids: list[tuple[int, int, int]]
) -> None:
    placed = family.layout(user_turn("what?", pictures(len(grids))), visual_input(grids))
    ids = torch.from_numpy(placed.token_ids)[None]
    kinds = (ids == control_ids(tokenizer)["image"]).int()
    patches = torch.tensor([[t, 2 * h, 2 * w] for t, h, w in grids])
    counted = counted_positions(ids[0].tolist(), [control_ids(tokenizer)["image"]], grids)
    np.testing.assert_array_equal(placed.position_ids.T, counted)
    assert placed.next_position == max(map(max, counted)) + 1
    if all(steps <= max(rows, columns) for steps, rows, columns in grids):
        positions, delta = model.get_rope_index(ids, kinds, image_grid_thw=patches)
        np.testing.assert_array_equal(placed.position_ids, positions[:, 0].numpy())
        assert placed.next_position == ids.shape[1] + int(delta)


@pytest.mark.parametrize("opening", ["", "<|endoftext|>"], ids=["no bos", "bos in the template"])
def test_a_tokenizer_that_opens_sequences_does_it_as_in_transformers(opening: str) -> None:
    tokenizer = train_tokenizer()
    bos = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    template = opening + TEMPLATE
    family = make_family(tokenizer, template, bos=bos)
    reference = make_reference(tokenizer, template, bos_token="<|endoftext|>")
    placed = lay_out(family, "what?", pictures(1))
    theirs = ask_reference(reference, "what?", pictures(1))["input_ids"][0].numpy()
    np.testing.assert_array_equal(placed.token_ids, theirs)
    assert placed.token_ids.tolist().count(bos) == 1


def test_truncation_and_padding_in_the_tokenizer_file_are_switched_off() -> None:
    tokenizer = train_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=400)
    family = make_family(tokenizer)
    plain = make_family(train_tokenizer())
    np.testing.assert_array_equal(
        lay_out(family, "what?", pictures(1)).token_ids,
        lay_out(plain, "what?", pictures(1)).token_ids,
    )


def test_special_tokens_reach_the_template(tokenizer: Tokenizer) -> None:
    family = make_family(tokenizer, TEMPLATE.replace("<|im_end|>", "{{ eos_token }}"))
    plain = make_family(tokenizer)
    np.testing.assert_array_equal(
        lay_out(family, "what?", pictures(2)).token_ids,
        lay_out(plain, "what?", pictures(2)).token_ids,
    )


@pytest.mark.parametrize("prompt", ["", " ", "\n\t \u3000"], ids=ascii)
def test_an_empty_prompt_is_refused(family: Qwen2VL, prompt: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        lay_out(family, prompt, pictures(1))


@pytest.mark.parametrize("token", CONTROL.values())
@pytest.mark.parametrize("around", ["{}", "what is{}this?", "a {} b"])
def test_a_control_token_in_a_prompt_is_refused(family: Qwen2VL, token: str, around: str) -> None:
    with pytest.raises(PromptError) as caught:
        lay_out(family, around.format(token), pictures(1))
    assert repr(token) in str(caught.value)


def test_an_added_word_that_the_template_writes_is_a_control_token(tokenizer: Tokenizer) -> None:
    family = make_family(tokenizer, TEMPLATE.replace("You look", "glyphword: you look"))
    with pytest.raises(PromptError, match="'glyphword'"):
        lay_out(family, "an ordinary glyphword", [])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("half \ud83d pair", "surrogate pair at character 5"),
        ("\udcff", "surrogate"),
        ("nul \0 inside", "NUL"),
        (b"bytes", "not bytes"),
        (None, "not NoneType"),
        (["list"], "not list"),
    ],
    ids=ascii,
)
def test_what_is_no_text_is_refused(family: Qwen2VL, prompt: Any, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        lay_out(family, prompt, pictures(1))


def test_a_str_of_numpy_is_text(family: Qwen2VL) -> None:
    np.testing.assert_array_equal(
        lay_out(family, np.str_("what?"), pictures(1)).token_ids,
        lay_out(family, "what?", pictures(1)).token_ids,
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0]['content'][-1]['text'] }}<|im_end|>", "0 places for 1 picture;"),
        (
            TEMPLATE.replace("<|image_pad|>", "<|image_pad|><|image_pad|>"),
            "2 places for 1 picture;",
        ),
        (TEMPLATE.replace("{{ part['text'] }}", ""), "leaves out the text"),
        (TEMPLATE.replace("{{ part['text'] }}", "{{ part['text'] | length }}"), "told apart"),
        ("{{ raise_exception('no pictures here') }}", "no pictures here"),
    ],
    ids=["no place", "two places", "no text", "not the text", "refuses"],
)
def test_a_template_that_does_not_fit_is_refused(
    tokenizer: Tokenizer, template: str, words: str
) -> None:
    family = make_family(tokenizer, template)
    with pytest.raises(PromptError, match=words):
        lay_out(family, "what?", pictures(1))


@pytest.mark.parametrize("role", ["image", "vision_end", "eos"])
def test_a_bundle_that_names_no_token_for_a_role_is_refused(
    tokenizer: Tokenizer, role: str
) -> None:
    tokens = control_ids(tokenizer)
    del tokens[role]
    with pytest.raises(BundleError, match=f"no '{role}' token"):
        Qwen2VL({"images": {}}, tokenizer, TEMPLATE, tokens)


def test_a_token_that_the_tokenizer_lacks_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(BundleError, match="'video' token is 99999"):
        make_family(tokenizer, video=99999)
