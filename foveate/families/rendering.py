"""A rendered conversation that knows which of its characters are the user's and which the template's."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveate.errors import PromptError
from foveate.families.chat import ChatTemplate
from foveate.families.messages import Conversation, Text

MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Characters that Unicode keeps for a program's own use; no filter of a template alters them."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as its template writes it.

    Attributes:
        text: What the model is given.
        skeleton: The same with one character in place of each of the conversation's texts.
        begins: Where in `text` the conversation's texts begin, ascending.
        places: Where in `skeleton` their characters stand.
        instruction: Begins and ends in `text` of what the user asks.
    """

    text: str
    skeleton: str
    begins: list[int]
    places: list[int]
    instruction: list[tuple[int, int]]


def render(
    template: ChatTemplate, conversation: Conversation, variables: Mapping[str, str]
) -> Rendered:
    """Render a conversation, ready for the assistant's turn, or in the midst of it.

    Where the last message is the assistant's, the text ends with it, so that the model goes on with it.
    Each text is rendered once as it is and once between marks, which tell where the template put it.

    Args:
        template: The checkpoint's.
        conversation: What to render.
        variables: More names for the template, such as eos_token.

    Raises:
        PromptError: A template that refuses the conversation, leaves out what the user asks, or
            writes something else where texts have marks.
    """
    texts = list(conversation.texts())
    last = len(conversation.messages) - 1
    if conversation.continues and not any(one.message == last for one in texts):
        raise PromptError(
            "The last message is the assistant's and has no text to go on with; give it one, or "
            "leave it out."
        )
    whole = "".join(one.text for one in texts)
    free = [mark for mark in MARKS if mark not in whole]
    if len(free) < 3:
        raise PromptError(
            "The texts hold characters that are none (U+FDD0 to U+FDEF); remove them."
        )
    opening, closing, cut = free[:3]

    def written(said: Sequence[str]) -> str:
        """The conversation with other texts, up to where the assistant goes on."""
        if not conversation.continues:
            return template.render(conversation.saying(said), variables=variables)
        begun = conversation.saying([*said[:-1], f"{said[-1]}{cut} "])
        rendered = template.render(begun, add_generation_prompt=False, variables=variables)
        return _ended(rendered, cut)

    plain = written([one.text for one in texts])
    marked = written(
        [_marked(one.text, f"{opening}{n}{opening}", closing) for n, one in enumerate(texts)]
    )
    spans: dict[int, tuple[int, int]] = {}
    begins: list[int] = []
    places: list[int] = []
    pieces: list[str] = []
    around: list[str] = []
    after = length = width = 0
    for found in re.finditer(f"{opening}(\\d+){opening}(.*?){closing}", marked, re.DOTALL):
        before = marked[after : found.start()]
        begins.append(length + len(before))
        places.append(width + len(before))
        pieces += before, found[2]
        around += before, opening
        length, width = begins[-1] + len(found[2]), places[-1] + 1
        spans[int(found[1])] = begins[-1], length
        after = found.end()
    text, skeleton = ("".join([*some, marked[after:]]) for some in (pieces, around))
    if text != plain:
        raise PromptError(
            "The chat template writes other words around a text that begins or ends otherwise, so "
            "that its words and the user's cannot be told apart; check the bundle's chat template."
        )
    asked = set(conversation.instruction())
    kept = [(one, spans[n]) for n, one in enumerate(texts) if n in spans and one in asked]
    if not kept:
        raise PromptError(
            "The chat template leaves out the text of the last turn of the user; check the bundle's "
            "chat template."
        )
    return Rendered(
        text, skeleton, begins, places, [_with_spaces(text, one, *span) for one, span in kept]
    )


def _marked(text: str, opening: str, closing: str) -> str:
    """A text with marks around it, inside the spaces that a template may trim; blank ones as they are."""
    core = text.strip()
    if not core:
        return text
    begin = len(text) - len(text.lstrip())
    return f"{text[:begin]}{opening}{core}{closing}{text[begin + len(core) :]}"


def _ended(rendered: str, cut: str) -> str:
    """What stands before the last `cut`, without spaces where the template trimmed the one after it."""
    place = rendered.rfind(cut)
    if place < 0:
        raise PromptError(
            "The chat template leaves out the assistant's last message, so that it cannot go on with "
            "it; leave that message out, or check the bundle's chat template."
        )
    trimmed = rendered[place + 1 : place + 2] != " "
    return rendered[:place].rstrip() if trimmed else rendered[:place]


def _with_spaces(rendered: str, text: Text, begin: int, end: int) -> tuple[int, int]:
    """Where a text stands, with the spaces around it where the template kept them."""
    before = text.text[: len(text.text) - len(text.text.lstrip())]
    behind = text.text[len(text.text.rstrip()) :]
    if before and rendered.endswith(before, 0, begin):
        begin -= len(before)
    if behind and rendered.startswith(behind, end):
        end += len(behind)
    return begin, end
