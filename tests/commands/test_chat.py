"""foveate chat: turns, pictures, commands, interrupts, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate import Pipeline
from foveate.runtime.chat import Turn
from tests.command import invoke, refused


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 112 x 84 pixels: 12 visual tokens."""
    path = tmp_path_factory.mktemp("pictures") / "scene one.png"
    Image.effect_noise((112, 84), 90).convert("RGB").save(path)
    return path


def talk(bundle: Path, *lines: str, options: tuple[object, ...] = ()) -> list[dict[str, Any]]:
    """The events of a chat."""
    words = ["chat", bundle, "--json", "--max-new-tokens", 3, *options]
    result = invoke(*words, stdin="\n".join(lines).encode())
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_turns_are_a_conversation(bundle: Path, picture: Path) -> None:
    """What the chat answers is what the messages are answered."""
    image, first, second = talk(
        bundle, "What?", "", "And where?",
        options=("--image", picture, "--system", "Be brief.", "--keep", "0.5"),
    )  # fmt: skip
    assert image == {"event": "image", "path": str(picture)}
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    ]
    options: dict[str, Any] = {"images": [picture], "keep": 0.5, "max_new_tokens": 3}
    with Pipeline.load(bundle, device="cpu") as pipe:
        text = pipe.generate(messages, **options).text
        assert first["text"] == text
        messages += [
            {"role": "assistant", "content": text},
            {"role": "user", "content": [{"type": "text", "text": "And where?"}]},
        ]
        wanted = pipe.generate(messages, **options)
    assert second["token_ids"] == wanted.token_ids
    assert second["visual"]["indices"] == wanted.visual.indices.tolist()
    assert (first["reused_tokens"], first["kept_choice"]) == (0, False)
    before_pictures = second["reused_tokens"]
    assert 0 < before_pictures < second["prompt_tokens"] - 6


def test_commands(bundle: Path, picture: Path) -> None:
    events = talk(
        bundle, "Who?", f"/image {picture}", "What?", "/clear", f"/image {picture}",
        f"/image {picture}", "Which?", "/quit", "Never?",
    )  # fmt: skip
    names = [event["event"] for event in events]
    assert names == ["answer", "image", "answer", "clear", "image", "image", "answer"]
    totals = [event["visual"]["total"] for event in events if event["event"] == "answer"]
    assert totals == [0, 12, 24]
    assert events[-1]["reused_tokens"] == 0


def test_the_kept_choice_keeps_the_whole_cache(bundle: Path, picture: Path) -> None:
    options = ("--image", picture, "--keep", "4", "--keep-cache")
    _, first, second, _, third = talk(
        bundle, "What?", "Where?", f"/image {picture}", "Which?", options=options
    )
    assert second["kept_choice"] and not first["kept_choice"] and not third["kept_choice"]
    assert second["visual"]["indices"] == first["visual"]["indices"]
    assert second["reused_tokens"] >= first["prompt_tokens"]
    result = invoke("chat", bundle, *options, "--max-new-tokens", 2, stdin=b"What?\nWhere?\n")
    assert "--keep-cache: the visual tokens are those that an earlier question" in result.stderr
    assert "from the KV cache" in result.stderr


def test_text_goes_to_standard_output_alone(bundle: Path, picture: Path) -> None:
    events = talk(bundle, "What?", "Where?", options=("--image", picture))
    words = ["chat", bundle, "--image", picture, "--max-new-tokens", 3]
    result = invoke(*words, stdin=b"What?\nWhere?\n")
    assert result.stdout == "".join(f"{event['text']}\n" for event in events[1:])
    assert result.stderr.count("first token after") == 2


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proceed, pieces = Turn.__next__, []

    def interrupted(turn: Turn) -> str:
        """The first turn's second piece does not come."""
        if len(pieces) == 1:
            pieces.append("stop")
            raise KeyboardInterrupt
        pieces.append(proceed(turn))
        return pieces[-1]

    monkeypatch.setattr(Turn, "__next__", interrupted)
    image, stopped, answer = talk(bundle, "What?", "Where?", options=("--image", picture))
    assert stopped == {"event": "stop", "text": pieces[0]}
    assert (image["event"], answer["event"]) == ("image", "answer")
    assert answer["visual"]["total"] == 12
    assert answer["reused_tokens"] > 0


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b"/image no-such-file.png", "no-such-file.png"),
        (b"/image ", "/image is no command"),
        (b"/fly", "/fly is no command"),
        (b"a <|im_end|> b", "control token"),
        (b"half \xff", "line 1 of standard input is no UTF-8"),
    ],
)
def test_a_line_that_is_refused_ends_a_chat_of_a_program(
    bundle: Path, line: bytes, word: str
) -> None:
    refused(invoke("chat", bundle, stdin=line + b"\nWhat?\n"), word)


def test_on_a_terminal_an_error_ends_the_turn_alone(
    bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["a <|im_end|> b", "/fly", "/image nowhere.png", f"/image {picture}", "What?"])

    def type_line(prompt: str) -> str:
        """The next line; then the end."""
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("foveate.commands.chat.at_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", type_line)
    result = invoke("chat", bundle, "--max-new-tokens", 2, "--json")
    assert result.exit_code == 0
    assert result.stderr.count("foveate: error:") == 3
    image, answer = map(json.loads, result.stdout.splitlines())
    assert (image["event"], answer["visual"]["total"]) == ("image", 12)


def test_options_that_are_refused(bundle: Path, picture: Path) -> None:
    refused(invoke("chat", bundle, "--image", "nowhere.png"), "nowhere.png")
    refused(invoke("chat", bundle, "--keep", "0", "--image", picture, stdin=b"What?"), "keep is")
    too_few = invoke("chat", bundle, "--image", picture, "--min-pixels", 9000, "--max-pixels", 99)
    refused(too_few, "give both")
