"""VILA1.5's pictures and prompts, against transformers' SigLIP processor and VILA's prompt as it is described."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from foveate import families
from foveate.errors import BundleError, ImageError, LimitError, PromptError
from foveate.families.base import Family, Medium, PixelLimits, Video, user_turn
from foveate.families.vila import LLAMA_3, SquareInput, Vila, choose_template
from tests.vila_checkpoints import META, train_llama_tokenizer

SIDE, PATCH, ACROSS = 54, 4, 7
REAL = {"side": 384, "patch_size": 14}
RESERVED = "<|reserved_special_token_3|>"
ROLES = {"image": RESERVED, "bos": "<|begin_of_text|>"}
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language."
)
same_pass_order = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13,
    reason="before 13.0 Pillow itself, and so transformers, resizes in another order",
)
FIXED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def make_family(template: str | None = None, **images: Any) -> Vila:
    """The family on a small tokenizer like Llama 3's."""
    tokenizer = train_llama_tokenizer()
    source = choose_template(META if template is None else template, lambda: tokenizer)
    assert source is not None
    made = families.create(
        "vila",
        preprocessing={
            "images": {"side": SIDE, "patch_size": PATCH, **images},
            "videos": {"frames": 3},
        },
        tokenizer=tokenizer,
        chat_template=source,
        tokens={role: tokenizer.token_to_id(text) for role, text in ROLES.items()},
    )
    assert isinstance(made, Vila)
    return made


@pytest.fixture(scope="module")
def family() -> Vila:
    return make_family()


@pytest.fixture(scope="module")
def processor() -> Any:
    return SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """A picture of random levels."""
    random = np.random.default_rng(height * 10_007 + width)
    levels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels).convert(mode)


def pixels(visual: SquareInput) -> NDArray[np.float32]:
    """All calls' pictures, float32 [N, 3, side, side]."""
    found = np.concatenate([call.inputs["pixel_values"] for call in visual.calls])
    assert found.dtype == np.float32
    return found


# Pictures


@same_pass_order
@FIXED
@given(height=st.integers(1, 900), width=st.integers(1, 900))
def test_pixels_are_those_of_transformers_to_the_bit(
    family: Vila, processor: Any, height: int, width: int
) -> None:
    picture = noise(height, width)
    theirs = processor(images=[picture], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(pixels(family.prepare([picture])), theirs)


@same_pass_order
@pytest.mark.parametrize(
    "size", [(384, 384), (383, 385), (1, 1), (7, 1999), (1080, 1920), (600, 37)]
)
def test_pixels_of_the_real_size_are_too(size: tuple[int, int]) -> None:
    processor = SiglipImageProcessorPil(size={"height": 384, "width": 384})
    visual = make_family(**REAL).prepare([noise(*size)])
    theirs = processor(images=[noise(*size)], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(pixels(visual), theirs)
    assert visual.tokens == 196


@same_pass_order
@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_pictures_of_other_modes(family: Vila, processor: Any, mode: str) -> None:
    picture = noise(90, 70, mode)
    theirs = processor(images=[picture], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(pixels(family.prepare([picture])), theirs)


def test_what_is_transparent_shows_white(family: Vila) -> None:
    picture = noise(60, 80).convert("RGBA")
    picture.putalpha(Image.fromarray(np.arange(60 * 80, dtype=np.uint8).reshape(60, 80)))
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    np.testing.assert_array_equal(
        pixels(family.prepare([picture])), pixels(family.prepare([white.convert("RGB")]))
    )


@same_pass_order
def test_every_picture_and_frame_is_a_picture_of_its_own(family: Vila, processor: Any) -> None:
    pictures = [noise(60 + 7 * number, 90) for number in range(5)]
    frames = tuple(noise(50, 40 + number).resize((40, 50)) for number in range(3))
    media = [pictures[0], Video(frames), *pictures[1:]]
    shown = [pictures[0], *frames, *pictures[1:]]
    visual = family.prepare(media)
    theirs = np.stack(
        [processor(images=[one], return_tensors="np")["pixel_values"][0] for one in shown]
    )
    np.testing.assert_array_equal(pixels(visual), theirs)
    assert visual.frames == (0, 3, 0, 0, 0, 0)
    assert visual.tokens == 8 * ACROSS**2 == sum(call.tokens for call in visual.calls)
    np.testing.assert_array_equal(visual.picture, np.repeat(np.arange(8), ACROSS**2))
    assert visual.candidates.all()
    planned = family.plan(media)
    assert planned.calls == ()
    assert (planned.tokens, planned.frames) == (visual.tokens, visual.frames)
    fitted = Video(tuple(family.fit_frame(frame, 3) for frame in frames))
    assert {frame.size for frame in fitted.frames if isinstance(frame, Image.Image)} == {
        (SIDE, SIDE)
    }
    np.testing.assert_array_equal(pixels(family.prepare([fitted])), theirs[1:4])


def test_levels_are_the_pixels_before_they_are_normalised(family: Vila) -> None:
    tokenizer = train_llama_tokenizer()
    levels = families.create(
        "vila",
        preprocessing={"images": {"side": SIDE, "patch_size": PATCH}},
        tokenizer=tokenizer,
        chat_template=LLAMA_3.replace("<image>", RESERVED),
        tokens={"image": tokenizer.token_to_id(RESERVED)},
        levels=True,
    )
    (call,) = levels.prepare([noise(80, 60), noise(30, 20)]).calls
    (array,) = call.inputs.values()
    assert (array.dtype, array.shape) == (np.uint8, (2, SIDE, SIDE, 3))
    table = family.settings.table
    looked = np.stack([table[channel][array[..., channel]] for channel in range(3)], axis=1)
    np.testing.assert_array_equal(looked, pixels(family.prepare([noise(80, 60), noise(30, 20)])))


def test_boxes_are_the_patches_that_a_token_is_made_of() -> None:
    """Counted patch by patch; what lies beyond the last patch, and the padding, is in no box."""
    for order in ("columns", "rows"):
        family = make_family(order=order)
        boxes = family.plan([noise(10, 10)]).boxes
        for token, box in enumerate(boxes.tolist()):
            row, column = divmod(token, ACROSS)
            if order == "columns":
                row, column = column, row
            patches = [
                (down, right)
                for down in range(2 * row, 2 * row + 2)
                for right in range(2 * column, 2 * column + 2)
                if max(down, right) < SIDE // PATCH
            ]
            wanted = (
                min(right for _, right in patches) * PATCH / SIDE,
                min(down for down, _ in patches) * PATCH / SIDE,
                (max(right for _, right in patches) + 1) * PATCH / SIDE,
                (max(down for down, _ in patches) + 1) * PATCH / SIDE,
            )
            assert box == pytest.approx(wanted, abs=1e-6)
    assert make_family(**REAL).plan([noise(10, 10)]).boxes.max() == pytest.approx(378 / 384)


def test_the_largest_run_is_told_in_patches(family: Vila) -> None:
    for count, together in ((1, 1), (3, 3), (9, 5)):
        visual = family.plan([noise(9, 9)] * count)
        assert visual.largest_run(256) == together * 13**2
    assert family.plan([]).largest_run(256) == 0


def test_what_it_cannot_take_is_refused(family: Vila) -> None:
    assert family.limited(PixelLimits()) is family
    with pytest.raises(LimitError, match="54 x 54"):
        family.limited(PixelLimits(max_pixels=10_000))
    with pytest.raises(ImageError, match="at least one frame"):
        family.plan([Video(())])
    with pytest.raises(ImageError, match="frames of one size"):
        family.plan([Video((noise(10, 10), noise(10, 12)))])
    with pytest.raises(BundleError, match="patch_size 60 is over side 54"):
        make_family(patch_size=60)
    with pytest.raises(BundleError, match="order"):
        make_family(order="diagonals")


def test_frames_of_a_file_are_a_fixed_number(family: Vila) -> None:
    rule = family.frame_rule
    for seconds, there in ((1, 24), (600, 14_400), (2, 3)):
        assert rule.count(Fraction(seconds), there) == 3
    assert rule.count(Fraction(1), 2) == 2
    assert rule.count(Fraction(3), 90, fps=Fraction(5)) == 15


# Prompts


def turn(role: str, text: str, shown: int = 0) -> str:
    """One turn of VILA1.5's prompt."""
    return (
        f"<|start_header_id|>{role}<|end_header_id|>\n\n"
        + "<image>\n" * shown
        + f"{text}<|eot_id|>"
    )


OPENING = "<|start_header_id|>assistant<|end_header_id|>\n\n"


def expected_ids(text: str) -> list[int]:
    """Tokens of a prompt, cut at its pictures as VILA cuts it, with 49 placeholders for each picture."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_llama_tokenizer())
    placeholder = tokenizer.convert_tokens_to_ids(RESERVED)
    ids: list[int] = []
    for number, chunk in enumerate(text.split("<image>")):
        ids += [placeholder] * (ACROSS**2 if number else 0)
        ids += tokenizer(chunk, add_special_tokens=False)["input_ids"]
    return ids


def laid_out(family: Family, messages: Sequence[Any], media: Sequence[Medium]) -> Any:
    return family.layout(messages, family.plan(media))


FRAMES = Video((noise(20, 20), noise(20, 20), noise(20, 20)))
PICTURE = noise(30, 40)
PART = {"image": {"type": "image"}, "video": {"type": "video"}}


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


ASKED = [
    "What can be seen in the pictures?",
    " spaces before and behind \n",
    "two\n\nlines",
    "\u65e5\u672c \U0001f469\u200d\U0001f52c <image> [INST] {{ 7 }}",
]


@pytest.mark.parametrize("prompt", ASKED)
@pytest.mark.parametrize(
    ("media", "shown"),
    [([], 0), ([PICTURE], 1), ([PICTURE] * 3, 3), ([FRAMES], 3), ([PICTURE, FRAMES], 4)],
)
def test_a_question_is_vilas_prompt(
    family: Vila, prompt: str, media: list[Medium], shown: int
) -> None:
    """<image> in the user's own words is text: only the family's placeholder stands for a picture."""
    placed = laid_out(family, user_turn(prompt, media), media)
    mark = prompt.replace("<image>", "<\0image>")
    text = "<|begin_of_text|>" + turn("system", SYSTEM) + turn("user", mark, shown) + OPENING
    if "<\0image>" in text:
        before, behind = text.split("<\0image>")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_llama_tokenizer())
        whole = (before + "<image>" + behind).replace("<image>\n", RESERVED * ACROSS**2 + "\n")
        wanted = tokenizer(whole, add_special_tokens=False)["input_ids"]
    else:
        wanted = expected_ids(text)
    np.testing.assert_array_equal(placed.token_ids, wanted)
    np.testing.assert_array_equal(placed.position_ids, np.arange(len(wanted))[None])
    assert placed.next_position == len(wanted)
    assert len(placed.visual_index) == shown * ACROSS**2
    tokenizer = train_llama_tokenizer()
    assert set(placed.token_ids[placed.visual_index]) <= {tokenizer.token_to_id(RESERVED)}
    words = tokenizer.decode(placed.token_ids[placed.instruction_index].tolist())
    assert words.strip() == prompt.strip()


def test_a_conversation_of_mixed_turns(family: Vila) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [said("First: "), PART["image"], said("and then"), PART["video"]],
        },
        {"role": "assistant", "content": "Seen."},
        {"role": "user", "content": [PART["image"], PART["image"], said("Which?")]},
    ]
    media = [PICTURE, FRAMES, PICTURE, PICTURE]
    placed = laid_out(family, messages, media)
    first = "First: <image>\nand then" + "<image>\n" * 3
    text = (
        "<|begin_of_text|>"
        + turn("system", "Be brief.")
        + turn("user", first)
        + turn("assistant", "Seen.")
        + turn("user", "Which?", 2)
        + OPENING
    )
    np.testing.assert_array_equal(placed.token_ids, expected_ids(text))
    tokenizer = train_llama_tokenizer()
    assert tokenizer.decode(placed.token_ids[placed.instruction_index].tolist()) == "Which?"


def test_an_answer_is_gone_on_with(family: Vila) -> None:
    messages = [
        {"role": "user", "content": [PART["image"], said("What?")]},
        {"role": "assistant", "content": "It is"},
    ]
    placed = laid_out(family, messages, [PICTURE])
    text = (
        "<|begin_of_text|>" + turn("system", SYSTEM) + turn("user", "What?", 1) + OPENING + "It is"
    )
    np.testing.assert_array_equal(placed.token_ids, expected_ids(text))


@pytest.mark.parametrize(
    ("messages", "media", "words"),
    [
        (user_turn("What?", [PICTURE]), [], "places for 1 picture, and no picture"),
        (user_turn("What?", [PICTURE]), [FRAMES], "1 picture, and 1 video"),
        (user_turn("What?", [PICTURE] * 3), [FRAMES], "3 pictures, and 1 video"),
        (user_turn(f"What is {RESERVED}?", [PICTURE]), [PICTURE], "control token"),
        (user_turn("What<|eot_id|>?", []), [], "control token"),
        ("What?", [PICTURE], "a list of messages"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(
    family: Vila, messages: Any, media: list[Medium], words: str
) -> None:
    if isinstance(messages, str):
        words = "list of messages"
    with pytest.raises(PromptError, match=words):
        laid_out(family, messages, media)


def test_a_bundle_without_a_token_for_pictures_is_refused() -> None:
    tokenizer = train_llama_tokenizer()
    with pytest.raises(BundleError, match="no 'image' token"):
        families.create(
            "vila",
            preprocessing={"images": {}},
            tokenizer=tokenizer,
            chat_template=LLAMA_3,
            tokens={"bos": 0},
        )
