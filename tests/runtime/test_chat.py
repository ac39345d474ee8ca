"""Chats whose turns take over the KV cache answer as requests that begin anew: on every engine."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline, Request
from foveate.errors import ImageError, LimitError, PromptError
from foveate.runtime import Chat, PrefixCache
from foveate.runtime.stopping import Stop
from tests.runtime.watched import watch

QUESTIONS = (
    "Describe the picture.",
    "What letter is in the red square?",
    "How many stars are there?",
)
LOGITS = 1e-4
"""Absolute, on logits of magnitude 20: float32 sums in another order through ten layers."""


def turns(said: list[tuple[str, str]], question: str, pictures: int) -> list[dict[str, Any]]:
    """The messages of a conversation whose pictures come first."""
    shown = [{"type": "image"}] * pictures
    texts = [*(one for one, _ in said), question]
    answers = [*(answer for _, answer in said), None]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    for text, answer in zip(texts, answers, strict=True):
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": text}]})
        shown = []
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return messages


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_answers_with_reuse_are_those_without(
    engine: Pipeline, pictures: list[Image.Image], keep: float
) -> None:
    can = engine._language.capabilities.prefix_reuse
    assert can == (engine.backend == "onnxruntime")
    chat = Chat(engine, system="Be brief.")
    chat.show(*pictures[:2])
    said: list[tuple[str, str]] = []
    last = 0
    for number, question in enumerate(QUESTIONS):
        turn = chat.ask(question, keep=keep, max_new_tokens=4)
        text = "".join(turn)
        messages = turns(said, question, 2)
        wanted = engine.generate(messages, images=pictures[:2], keep=keep, max_new_tokens=4)
        assert turn.answer.token_ids == wanted.token_ids
        assert np.array_equal(turn.answer.visual.indices, wanted.visual.indices)
        if not can or not number:
            assert chat.reused == 0
        elif keep == 1:
            assert chat.reused >= last
        else:
            assert 0 < chat.reused < last
        last = turn.answer.prompt_tokens
        said.append((question, text))
    assert chat.messages == [
        *turns(said[:-1], said[-1][0], 2),
        {"role": "assistant", "content": text},
    ]


@pytest.mark.parametrize("operators", ["standard", "contrib"])
@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_logits_with_reuse_are_those_without(
    open_engine: Callable[[str], Pipeline], pictures: list[Image.Image], operators: str, keep: float
) -> None:
    """Of the decode step after a prompt that was taken over in part."""
    found = []
    for prefix in (None, PrefixCache()):
        watching, watched = watch(open_engine(operators))
        seen = watching.encode(images=pictures[:1])
        for said in ([], [(QUESTIONS[0], "a star")]):
            watching.generate(
                turns(said, QUESTIONS[1], 1), encoded=seen, keep=keep, max_new_tokens=2,
                ignore_eos=True, prefix=prefix,
            )  # fmt: skip
        found.append(watched.seen[-1])
        assert prefix is None or prefix.reused > 0
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=LOGITS)


@pytest.fixture
def pipe(open_engine: Callable[[str], Pipeline]) -> Pipeline:
    return open_engine("contrib")


def test_other_pictures_share_what_comes_before_them(
    pipe: Pipeline, pictures: list[Image.Image]
) -> None:
    """Even where they have the same places and sizes."""
    prefix = PrefixCache()
    turned = pictures[0].rotate(180)
    for picture in (pictures[0], turned, turned):
        messages = turns([], QUESTIONS[0], 1)
        options: dict[str, Any] = {"images": [picture], "keep": 1.0, "max_new_tokens": 4}
        answer = pipe.generate(messages, **options, prefix=prefix)
        assert answer.token_ids == pipe.generate(messages, **options).token_ids
    before = pipe._preparation.prepare(Request(messages, **options), Stop()).prompt.visual_index[0]
    assert prefix.reused == before


def test_a_prompt_that_is_there_already_is_answered(
    pipe: Pipeline, pictures: list[Image.Image]
) -> None:
    """All of it but its last token is taken over, and a shorter one as well."""
    seen, prefix = pipe.encode(images=pictures[:1]), PrefixCache()
    options: dict[str, Any] = {"encoded": seen, "keep": 1.0, "max_new_tokens": 6}
    long, short = turns([("One?", "2")], QUESTIONS[0], 1), turns([], "One?", 1)
    reused = []
    for messages in (long, long, short, long):
        answer = pipe.generate(messages, **options, prefix=prefix)
        assert answer.token_ids == pipe.generate(messages, **options).token_ids
        reused.append(prefix.reused)
    assert (reused[0], reused[1]) == (0, answer.prompt_tokens - 1)
    assert 0 < answer.visual.total < reused[2] <= reused[3] < reused[1]
    prefix.clear()
    assert (prefix.tokens, prefix.reused) == (0, 0)


def test_another_model_shares_nothing(
    pipe: Pipeline, open_engine: Callable[[str], Pipeline], pictures: list[Image.Image]
) -> None:
    prefix = PrefixCache()
    messages = turns([], "One?", 0)
    for engine in (pipe, open_engine("standard"), open_engine("tensorrt"), pipe):
        engine.generate(messages, max_new_tokens=2, prefix=prefix)
        assert prefix.reused == 0
    pipe.generate(messages, max_new_tokens=2, prefix=prefix)
    assert prefix.reused > 0


def test_a_turn_that_is_stopped_or_refused(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    chat = Chat(pipe)
    chat.show(pictures[0])
    with pytest.raises(PromptError):
        chat.ask("<|im_end|>")
    with pytest.raises(ImageError):
        chat.show(b"no picture")
    assert chat.messages == []
    turn = chat.ask(QUESTIONS[0], keep=1.0, max_new_tokens=8)
    piece = next(turn)
    turn.close()
    turn.close()
    assert [message["content"] for message in chat.messages[1:]] == [piece]
    answer = chat.ask(QUESTIONS[1], keep=1.0, max_new_tokens=4)
    assert "".join(answer) == answer.answer.text
    assert chat.reused > answer.answer.visual.total
    assert len(chat.messages) == 4
    wanted = pipe.generate(chat.messages[:3], images=pictures[:1], keep=1.0, max_new_tokens=4)
    assert answer.answer.token_ids == wanted.token_ids
    unread = chat.ask(QUESTIONS[2], keep=1.0, max_new_tokens=4)
    chat.ask(QUESTIONS[2], keep=1.0, max_new_tokens=4)
    assert list(unread) == []
    assert len(chat.messages) == 6
    chat.clear()
    assert (chat.messages, chat.reused) == ([], 0)


@pytest.mark.parametrize("answer", ["nul \0", "a <|im_end|> b", "<|vision_start|>"])
def test_an_answer_that_no_prompt_may_hold_is_left_out(pipe: Pipeline, answer: str) -> None:
    """The chat can go on."""
    chat = Chat(pipe)
    chat.take({"role": "user", "content": "One?"}, "fine", None)
    assert not chat.left_out
    chat.take({"role": "user", "content": "Two?"}, answer, None)
    assert chat.left_out
    assert [message["content"] for message in chat.messages] == ["One?", "fine", "Two?", ""]
    turn = chat.ask("Three?", max_new_tokens=2)
    assert "".join(turn) == turn.answer.text


def test_a_batch_has_no_prefix(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    request = Request(QUESTIONS[0], images=pictures[:1], prefix=PrefixCache())
    with pytest.raises(LimitError, match=r"requests\[0\]: a batch has no prefix"):
        pipe.generate_batch([request])
