"""`foveate chat`: a conversation about pictures, turn by turn."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click import IntRange, option

from foveate.commands.options import (
    LOADING,
    PATH,
    keep_marks,
    loading,
    options,
    pixels,
    system,
    verb,
)
from foveate.commands.run import answer_facts, describe_answer
from foveate.errors import FoveateError, PromptError
from foveate.terminal import note, one_line, plural, tell

if TYPE_CHECKING:
    from foveate.runtime import Answer, Chat
    from foveate.runtime.chat import Turn

HELP = (
    "/image PATH shows a picture before the next question, /clear forgets everything, /quit ends; "
    "Ctrl-C stops an answer"
)

LEFT_OUT = "the answer says what no prompt may hold, and is left out of the conversation"


@verb("foveate chat bundle --image street.jpg --keep 0.25")
@click.argument("bundle", type=PATH)
@options(
    option("--image", "images", multiple=True, metavar="FILE",
           help="A picture to begin with; several times for several."),
    system,
    option("--keep", metavar="RATIO|N|auto",
           help="Visual tokens to keep: 0.25, 300, 1 for all, or auto for as many as the question needs.  "
           "[default: the bundle's]"),
    option("--keep-cache", is_flag=True,
           help="Keep the visual tokens that the first question chose, and the whole KV cache with them."),
    *pixels,
    option("--max-new-tokens", type=int, metavar="N", help="The longest answer."),
    option("--temperature", type=float, help="0 is greedy.  [default: the checkpoint's own]"),
    option("--seed", type=IntRange(min=0), help="Makes sampling repeatable."),
    keep_marks,
    option("--json", "as_json", is_flag=True, help="Print a line of JSON for each event."),
    *loading,
)  # fmt: skip
def chat(
    bundle: Path,
    images: tuple[str, ...],
    system: str | None,
    keep: str | None,
    keep_cache: bool,
    max_pixels: int | None,
    min_pixels: int | None,
    keep_marks: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Talk with BUNDLE about pictures, a line for each question.

    Questions come from standard input, answers go to standard output, the rest to standard error.
    Lines that begin with / are commands: /image PATH shows a picture before the next question, /clear
    forgets everything, /quit ends. Ctrl-C stops an answer and not the chat.
    """
    from foveate.runtime import Chat, Pipeline
    from foveate.runtime.keep import parse_request_keep

    how |= {
        "keep": None if keep is None else parse_request_keep(keep),
        "skip_special_tokens": not keep_marks,
    }
    with Pipeline.load(bundle, **{name: how.pop(name) for name in LOADING}) as pipe:
        if pipe.bundle.manifest.weights == "random":
            note(f"{bundle}: its weights are random, so that the answers mean nothing")
        talk = Chat(
            pipe,
            system=system,
            keep_cache=keep_cache,
            max_pixels=max_pixels,
            min_pixels=min_pixels,
        )
        screen = Screen(talk, as_json)
        if images:
            screen.show(*images)
        screen.converse(how)


class Screen:
    """A chat on the terminal, or line by line for a program."""

    def __init__(self, chat: Chat, as_json: bool) -> None:
        """Put `chat` on standard output, as text or as lines of JSON."""
        self.chat, self.as_json = chat, as_json

    def converse(self, options: dict[str, Any]) -> None:
        """Answer line by line until they end; on a terminal an error ends the turn alone."""
        by_hand = at_terminal()
        if by_hand:
            note(HELP)
        for line in lines(by_hand):
            try:
                if line.startswith("/"):
                    if not self.command(line):
                        return
                elif line:
                    self.answer(line, options)
            except FoveateError as error:
                if not by_hand:
                    raise
                note(f"foveate: error: {one_line(str(error))}")

    def command(self, line: str) -> bool:
        """Do what a line that begins with / says; whether the chat goes on."""
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return False
        if word == "/image" and rest.strip():
            self.show(rest.strip())
        elif word == "/clear":
            self.chat.clear()
            self.say({"event": "clear"}, "forgot all turns and pictures")
        else:
            raise PromptError(f"{word} is no command that the chat knows: {HELP}")
        return True

    def show(self, *images: str) -> None:
        """Show pictures before the next question."""
        self.chat.show(*images)
        for image in images:
            self.say({"event": "image", "path": image}, f"{image} comes before the next question")

    def answer(self, question: str, options: dict[str, Any]) -> None:
        """Ask, and write the answer as it comes; Ctrl-C stops it."""
        turn: Turn | None = None
        kept_before = self.chat.keeps
        said = ""
        try:
            turn = self.chat.ask(question, **options)
            for piece in turn:
                said += piece
                if not self.as_json:
                    tell(piece, newline=False)
        except KeyboardInterrupt:
            left = "the question is forgotten"
            if turn is not None:
                turn.close()
                left = "what was said stays in the conversation"
            self._end_line(said)
            if self.chat.left_out:
                left = LEFT_OUT
            self.say({"event": "stop", "text": said}, f"stopped; {left}")
            return
        except BaseException:
            self._end_line(said)
            raise
        self._end_line(said or " ")
        self._report(turn.answer, kept_before)

    def _report(self, answer: Answer, kept_before: bool) -> None:
        """Say how an answer came about."""
        reused = self.chat.reused
        facts = {"event": "answer", **answer_facts(answer)}
        facts |= {"reused_tokens": reused, "kept_choice": kept_before}
        facts |= {"left_out": self.chat.left_out}
        words = describe_answer(answer)
        if reused:
            words += (
                f"\n({reused} of {plural(answer.prompt_tokens, 'prompt token')} from the KV cache)"
            )
        if kept_before:
            words += "\n(--keep-cache: the visual tokens are those that an earlier question chose)"
        if self.chat.left_out:
            words += f"\n({LEFT_OUT})"
        self.say(facts, words)

    def _end_line(self, said: str) -> None:
        """End the line of an answer in text."""
        if said and not self.as_json:
            tell("")

    def say(self, event: dict[str, Any], words: str) -> None:
        """Write an event as a line of JSON, or as a remark."""
        if self.as_json:
            tell(json.dumps(event))
        else:
            note(words)


def at_terminal() -> bool:
    """Whether a person types the lines."""
    return sys.stdin.isatty()


def lines(by_hand: bool) -> Iterator[str]:
    """The lines of standard input, without spaces around them.

    Raises:
        PromptError: A line that is no UTF-8.
    """
    if not by_hand:
        for number, line in enumerate(sys.stdin.buffer, start=1):
            try:
                yield line.decode().strip()
            except UnicodeDecodeError as error:
                raise PromptError(
                    f"line {number} of standard input is no UTF-8 ({error.reason} at byte "
                    f"{error.start}); convert it"
                ) from error
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            note("\n/quit ends the chat")
