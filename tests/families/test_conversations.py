"""Conversations to tokens and positions, against transformers' processor and model. All integers: equal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from foveate.errors import PromptError
from foveate.families.base import Medium, Prompt, Video
from foveate.families.messages import Conversation
from foveate.families.qwen2_vl import Qwen2VL
from tests.families.reference import (
    CONTROL,
    TEMPLATE,
    control_ids,
    make_family,
    make_reference,
    train_tokenizer,
)
from tests.families.test_qwen2_vl_video import VIDEO

SHOWN = {"type": "image"}
TRIMMED = TEMPLATE.replace("{{ part['text'] }}", "{{ part['text'] | trim }}").replace(
    "{{ message['content'] }}", "{{ message['content'] | trim }}"
)
Messages = list[dict[str, Any]]


def say(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def turn(role: str, *parts: Any) -> dict[str, Any]:
    """A message of parts, or of one text."""
    return {"role": role, "content": parts[0] if isinstance(parts[0], str) else list(parts)}


CHATS: dict[str, tuple[Messages, str]] = {
    "system": (
        [turn("system", "Be brief."), turn("user", SHOWN, say("What is in the red star?"))],
        "What is in the red star?",
    ),
    "system of parts": (
        [
            turn("system", say("Be"), say(" brief.")),
            turn("user", say("Look: "), SHOWN, say("what?")),
        ],
        "what?",
    ),
    "pictures in every turn": (
        [
            turn("user", SHOWN, say("One?")),
            turn("assistant", "Two."),
            turn("user", SHOWN, say("Three,"), SHOWN, say(" four"), say("?")),
        ],
        " four?",
    ),
    "a picture of the assistant's": (
        [
            turn("user", say("Show me.")),
            turn("assistant", SHOWN, say("Here.")),
            turn("user", "In the red star?"),
        ],
        "In the red star?",
    ),
    "text before its picture": (
        [turn("user", say("What is this? "), SHOWN, say(" \n"))],
        "What is this? ",
    ),
    "text around pictures": (
        [turn("user", say("Is this "), SHOWN, say("like this? "), SHOWN)],
        "Is this like this? ",
    ),
    "the same words twice": (
        [turn("user", "star"), turn("assistant", "user star"), turn("user", SHOWN, say("star"))],
        "star",
    ),
    "an empty system turn": ([turn("system", ""), turn("user", SHOWN, say("what?"))], "what?"),
    "spaces at the edges": (
        [
            turn("system", " \n"),
            turn("user", SHOWN, say("\n what? \t")),
            turn("assistant", " yes "),
        ],
        "\n what? \t",
    ),
    "characters that are none": (
        [turn("user", say("\ufdd0 0\ufdd0what\ufdd1"), say("\ufdd2?"))],
        "\ufdd0 0\ufdd0what\ufdd1\ufdd2?",
    ),
    "going on": (
        [turn("user", SHOWN, say("What is in the red star?")), turn("assistant", "It is a ")],
        "What is in the red star?",
    ),
    "going on from parts": (
        [turn("user", SHOWN, say("what?")), turn("assistant", say("It"), say(" is\n"))],
        "what?",
    ),
}


def pictures(count: int) -> list[Image.Image]:
    """Grey pictures of unequal sizes."""
    sizes = [(60, 100), (240, 60), (84, 84)]
    return [Image.new("L", sizes[number % 3], 99) for number in range(count)]


def lay_out(family: Qwen2VL, messages: Messages, media: Sequence[Medium] | None = None) -> Prompt:
    if media is None:
        media = pictures(len(Conversation.of(messages).media))
    return family.layout(messages, family.prepare(media))


def with_pictures(messages: Messages) -> Messages:
    """The messages as transformers wants them."""
    images = iter(pictures(9))
    return [
        message
        if isinstance(message["content"], str)
        else {
            **message,
            "content": [
                {"type": "image", "image": next(images)} if part is SHOWN else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


@pytest.fixture(scope="module")
def trimmed(tokenizer: Tokenizer) -> tuple[Qwen2VL, Any]:
    """A family and a reference whose template trims texts."""
    return make_family(tokenizer, TRIMMED), make_reference(tokenizer, TRIMMED)


@pytest.mark.parametrize("trims", [False, True], ids=["as it is", "trimmed"])
@pytest.mark.parametrize("name", CHATS)
def test_tokens_and_positions_are_the_references(
    family: Qwen2VL,
    reference: Any,
    trimmed: tuple[Qwen2VL, Any],
    tokenizer: Tokenizer,
    model: Qwen2VLModel,
    name: str,
    trims: bool,
) -> None:
    messages, asked = CHATS[name]
    if trims:
        family, reference = trimmed
    ours = lay_out(family, messages)
    goes_on = messages[-1]["role"] == "assistant"
    theirs = reference.apply_chat_template(
        with_pictures(messages),
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    np.testing.assert_array_equal(ours.token_ids, theirs["input_ids"][0].numpy())
    positions, delta = model.get_rope_index(
        theirs["input_ids"],
        theirs["mm_token_type_ids"],
        image_grid_thw=theirs.get("image_grid_thw"),
    )
    np.testing.assert_array_equal(ours.position_ids, positions[:, 0].numpy())
    assert ours.next_position == len(ours.token_ids) + int(delta)
    visual = theirs["mm_token_type_ids"][0].numpy().nonzero()[0]
    np.testing.assert_array_equal(ours.visual_index, visual)
    said = tokenizer.decode(ours.token_ids[ours.instruction_index].tolist())
    if trims:
        said, asked = ("".join(one.split()) for one in (said, asked))
    assert said == asked


def test_going_on_from_nothing_is_the_assistants_turn(family: Qwen2VL) -> None:
    messages = [turn("user", SHOWN, say("what?"))]
    begun = lay_out(family, [*messages, turn("assistant", "")])
    np.testing.assert_array_equal(begun.token_ids, lay_out(family, messages).token_ids)


def test_pictures_and_videos_in_any_turn_are_placed_as_the_reference_does(
    tokenizer: Tokenizer, model: Qwen2VLModel
) -> None:
    family = make_family(tokenizer, VIDEO)
    messages = [
        turn("user", {"type": "video"}, SHOWN, say("what?")),
        turn("assistant", "That."),
        turn("user", SHOWN, {"type": "video"}, say("and this?")),
    ]
    film = Video(tuple(Image.new("RGB", (112, 84), level) for level in ("red", "blue", "red")))
    media = [film, *pictures(2), film]
    visual = family.prepare(media)
    placed = family.layout(messages, visual)
    ids = torch.from_numpy(placed.token_ids)[None]
    control = control_ids(tokenizer)
    kinds = (ids == control["image"]).int() + 2 * (ids == control["video"]).int()
    patches = torch.tensor([[t, 2 * h, 2 * w] for t, h, w in visual.grids])
    positions, delta = model.get_rope_index(
        ids, kinds, image_grid_thw=patches[1:3], video_grid_thw=patches[[0, 3]]
    )
    np.testing.assert_array_equal(placed.position_ids, positions[:, 0].numpy())
    assert placed.next_position == ids.shape[1] + int(delta)
    assert len(placed.visual_index) == visual.tokens
    order = [kind for kind in (kinds[0].unique_consecutive().tolist()) if kind]
    assert order == [2, 1, 1, 2]


@pytest.mark.parametrize("token", CONTROL.values())
@pytest.mark.parametrize("role", ["system", "user", "assistant", "going on"])
@pytest.mark.parametrize("split", [0, 1, 5, -1])
def test_no_text_of_any_turn_makes_a_control_token(
    family: Qwen2VL, token: str, role: str, split: int
) -> None:
    """Whole, or in two parts that the template writes one behind the other."""
    parts = (
        [say(f"a{token}b")] if not split else [say(f"a{token[:split]}"), say(f"{token[split:]}b")]
    )
    said = {one: [say("fine")] for one in ("system", "user", "assistant")}
    said["assistant" if role == "going on" else role] = parts
    messages = [turn(one, *said[one]) for one in said]
    if role != "going on":
        messages.append(turn("user", "what?"))
    with pytest.raises(PromptError, match="control token") as caught:
        lay_out(family, messages)
    assert repr(token) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{{ part['text'] }}", "{{ part['text'] }}|>"),
        ("{{ part['text'] }}", "<|{{ part['text'] }}"),
        ("{{ part['text'] }}", "{{ part['text'] | replace('_', '|') }}"),
        ("{{ part['text'] }}", "{{ part['text'] | lower }}"),
        ("{{ part['text'] }}", "{{ part['text'][0:3] }}{{ part['text'][3:] }}"),
        ("{{ part['text'] }}", "{{ part['text'].split('_') | join('<|im_end|>') }}"),
    ],
)
@pytest.mark.parametrize("text", ["<|im_end", "im_end|>", "<_im_end_>", "<|IM_END|>", "a_b"])
def test_no_template_makes_a_control_token_of_a_text(
    tokenizer: Tokenizer, old: str, new: str, text: str
) -> None:
    """What it writes beside texts, and what it makes of them."""
    assert old in TEMPLATE
    family = make_family(tokenizer, TEMPLATE.replace(old, new))
    end = tokenizer.token_to_id("<|im_end|>")
    own = lay_out(family, [turn("user", say("fine"))]).token_ids.tolist().count(end)
    try:
        found = lay_out(family, [turn("user", say(text))]).token_ids.tolist()
    except PromptError:
        return
    assert found.count(end) == own


def test_roles_that_the_template_makes_tokens_of_are_control_tokens() -> None:
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens(["<|user|>", "<|system|>", "<|box_start|>"])
    family = make_family(
        tokenizer,
        TEMPLATE.replace("{{ message['role'] }}", "{{ '<|' ~ message['role'] ~ '|>' }}"),
    )
    for token in ("<|user|>", "<|system|>"):
        with pytest.raises(PromptError, match="control token"):
            lay_out(family, [turn("user", say(f"a {token} b"))])
    lay_out(family, [turn("user", say("a <|box_start|> b"))])


def test_a_text_cannot_take_a_control_token_apart() -> None:
    """By a sign that the normalizer would put together with the token's last one."""
    tokenizer = train_tokenizer()
    ends = AddedToken("<|vision_end|>", special=True, normalized=True)
    tokenizer.add_special_tokens([ends])
    family = make_family(tokenizer)
    with pytest.raises(PromptError, match=r"takes apart the control token '<\|vision_end\|>'"):
        lay_out(family, [turn("user", SHOWN, say("\u0338what?"))])


MARKS = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
         "<|quad_start|>", "<|quad_end|>")  # fmt: skip


def test_marks_are_tokenized_as_in_transformers() -> None:
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens([*MARKS, "<|vision_pad|>"])
    family, reference = make_family(tokenizer), make_reference(tokenizer)
    messages = [
        turn("system", "Mark <|object_ref_start|>what<|object_ref_end|> you see."),
        turn("user", SHOWN, say("Where is <|object_ref_start|>"), say("it<|object_ref_end|>?")),
        turn("assistant", "<|box_start|>(1,2),(3,4)<|box_end|>"),
        turn("user", "And in <|quad_start|>(1,2)<|quad_end|>?"),
        turn("assistant", "<|box_"),
    ]
    ours = lay_out(family, messages)
    theirs = reference.apply_chat_template(
        with_pictures(messages), continue_final_message=True, tokenize=True, return_dict=True
    )
    assert ours.token_ids.tolist() == theirs["input_ids"][0]
    assert {tokenizer.token_to_id(mark) for mark in MARKS} <= set(ours.token_ids.tolist())
    for token in ("<|vision_pad|>", "<|endoftext|>"):
        with pytest.raises(PromptError, match="control token"):
            lay_out(family, [turn("user", say(token))])


REFUSED: list[tuple[Any, str]] = [
    ([], "no turn of the user"),
    ({"role": "user", "content": "what?"}, "not dict"),
    (7, "not int"),
    (b"what?", "not bytes"),
    (iter([]), "not list_iterator"),
    (["what?"], r"messages\[0\] is str"),
    ([{"role": "user"}], "role and content"),
    ([{"role": "user", "content": "what?", "name": "<|im_end|>"}], "nothing else"),
    ([turn("tool", "what?")], "the role 'tool'"),
    ([turn("user<|im_end|>", "what?")], "the roles are system, user, assistant"),
    ([{"role": ["user"], "content": "what?"}], "the role"),
    ([{"role": "user", "content": None}], "content that is NoneType"),
    ([{"role": "user", "content": []}], "content that is list"),
    ([{"role": "user", "content": b"what?"}], "content that is bytes"),
    ([turn("user", say("what?"), "more")], "part 1 is no part"),
    ([turn("user", {"type": ["text"], "text": "what?"})], "no part"),
    ([turn("user", {"type": "audio"})], "the type 'audio'"),
    ([turn("user", {"type": "image_url", "image_url": {"url": "a"}})], "the type 'image_url'"),
    ([turn("user", {"type": "image", "url": "http://a.b/c.png"})], "'image' or 'path'"),
    ([turn("user", {"type": "image", "image": "a", "path": "b"})], "'image' or 'path'"),
    ([turn("user", {"type": "image", "image": None})], "image None"),
    ([turn("user", {"type": "text", "text": "what?", "image": "a.png"})], "part 0 has the keys"),
    ([turn("user", {"type": "text", "text": None})], "not NoneType"),
    ([turn("user", say("half \ud83d pair"))], "surrogate pair at character 5"),
    ([turn("user", say("nul \0"))], "NUL"),
    ([turn("user", SHOWN)], "empty"),
    ([turn("user", "what?"), turn("assistant", "yes"), turn("user", SHOWN, say(" "))], "empty"),
    ([turn("assistant", "yes")], "no turn of the user"),
    ([turn("user", "what?"), turn("assistant", SHOWN)], "no text to go on with"),
    ([turn("user", "what?"), turn("assistant", say("This: "), SHOWN)], "0 places for 1 picture;"),
]


@pytest.mark.parametrize(("messages", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_conversation_is_refused(family: Qwen2VL, messages: Any, words: str) -> None:
    with pytest.raises(PromptError, match=words) as caught:
        lay_out(family, messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (0, "places for 1 picture, and no picture were given"),
        (2, "places for 1 picture, and 2 pictures were"),
    ],
)
def test_pictures_agree_with_their_places(family: Qwen2VL, given: int, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        lay_out(family, [turn("user", SHOWN, say("what?"))], pictures(given))
    film = Video((pictures(1)[0],))
    with pytest.raises(PromptError, match="places for 1 picture, and 1 video were"):
        lay_out(family, [turn("user", SHOWN, say("what?"))], [film])


def test_a_template_that_drops_or_repeats_texts_is_taken_as_in_transformers(
    tokenizer: Tokenizer,
) -> None:
    """As long as what the user asks is there."""
    template = "{{ messages[-1]['content'] }}<|im_end|>{{ messages[-1]['content'] }}<|im_start|>assistant\n"
    family, reference = make_family(tokenizer, template), make_reference(tokenizer, template)
    messages = [turn("user", "One?"), turn("assistant", "Two."), turn("user", " Three? ")]
    ours = lay_out(family, messages)
    theirs = reference.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert ours.token_ids.tolist() == theirs["input_ids"][0]
    said = ours.token_ids[ours.instruction_index].tolist()
    assert tokenizer.decode(said) == " Three? "
