"""Conversations as chat templates take them: checked, and as plain data."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.errors import PromptError
from foveate.families.base import Message

ROLES = ("system", "user", "assistant")
CARRIED = {"image": ("image", "path"), "video": ("video", "path")}
"""The types of parts that show something, and under which names they may carry it themselves."""
_PARTS = '{"type": "text", "text": …}, {"type": "image"} or {"type": "video"}'


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a conversation.

    Attributes:
        message: The index of its message.
        part: The index of its part; -1 where the whole content is this text.
        text: What it says.
    """

    message: int
    part: int
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation that was checked.

    Attributes:
        messages: Plain dicts and lists; parts hold nothing but their type and their text.
        media: Of each picture and video, in order, its type, "image" or "video", and what its part
            carries; None where the part only marks the place.
    """

    messages: tuple[Message, ...]
    media: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, messages: Sequence[Message]) -> "Conversation":
        """Check messages, and copy them.

        Raises:
            PromptError: No messages, or one that is none; the message names it by its index.
        """
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
            raise PromptError(
                f"A prompt is text or a list of messages, not {type(messages).__name__}; pass a str "
                'or a list such as [{"role": "user", "content": "…"}].'
            )
        media: list[tuple[str, Any]] = []
        plain = tuple(_checked(one, f"messages[{n}]", media) for n, one in enumerate(messages))
        if not any(message["role"] == "user" for message in plain):
            raise PromptError(
                "The conversation has no turn of the user; add one that asks something."
            )
        return cls(plain, tuple(media))

    @property
    def kinds(self) -> list[str]:
        """The types of its pictures and videos, in order."""
        return [kind for kind, _ in self.media]

    @property
    def continues(self) -> bool:
        """Whether the assistant is to go on with what the last message has it say."""
        return bool(self.messages[-1]["role"] == "assistant")

    def texts(self) -> Iterator[Text]:
        """All texts, in order."""
        for number, message in enumerate(self.messages):
            content = message["content"]
            if isinstance(content, str):
                yield Text(number, -1, content)
                continue
            for place, part in enumerate(content):
                if part["type"] == "text":
                    yield Text(number, place, part["text"])

    def saying(self, texts: Iterable[str]) -> list[Message]:
        """The messages with other texts, one for each of `texts`."""
        others = iter(texts)
        return [
            {
                **message,
                "content": next(others)
                if isinstance(message["content"], str)
                else [
                    {**part, "text": next(others)} if part["type"] == "text" else part
                    for part in message["content"]
                ],
            }
            for message in self.messages
        ]

    def instruction(self) -> list[Text]:
        """What the user asks: the last user turn's text after its last picture, or else all its text.

        Raises:
            PromptError: There is none.
        """
        asked = max(n for n, message in enumerate(self.messages) if message["role"] == "user")
        content = self.messages[asked]["content"]
        shown = [
            place
            for place, part in enumerate(() if isinstance(content, str) else content)
            if part["type"] != "text"
        ]
        said = [one for one in self.texts() if one.message == asked and one.text.strip()]
        after = [one for one in said if one.part > max(shown, default=-2)]
        if not said:
            raise PromptError(
                "The prompt is empty; ask something about the picture in the last turn of the user."
            )
        return after or said


def _checked(message: object, name: str, media: list[tuple[str, Any]]) -> Message:
    """A message as plain data; what its parts show is added to `media`."""
    if not isinstance(message, Mapping):
        raise PromptError(
            f"{name} is {type(message).__name__}; a message is a dict with role and content."
        )
    odd = set(message) ^ {"role", "content"}
    if odd:
        raise PromptError(
            f"{name} has the keys {sorted(map(str, message))}; a message has role and content, and "
            "nothing else."
        )
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(f"{name} has the role {role!r}; the roles are {', '.join(ROLES)}.")
    if isinstance(content, str):
        return {"role": str(role), "content": _text(content, name)}
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence) or not content:
        raise PromptError(
            f"{name} has content that is {type(content).__name__}; give a str, or a list of parts "
            f"that are each {_PARTS}."
        )
    parts = [_part(part, f"{name}, part {n}", media) for n, part in enumerate(content)]
    return {"role": str(role), "content": parts}


def _part(part: object, name: str, media: list[tuple[str, Any]]) -> dict[str, str]:
    """A part as plain data; what it shows is added to `media`."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise PromptError(f"{name} is no part of a message; give {_PARTS}.")
    keys = set(part) - {"type"}
    if kind == "text":
        if keys != {"text"}:
            raise PromptError(f"{name} has the keys {sorted(map(str, part))}; give {_PARTS}.")
        return {"type": "text", "text": _text(part["text"], name)}
    if kind not in CARRIED:
        raise PromptError(f"{name} has the type {kind!r}; give {_PARTS}.")
    if len(keys) > 1 or not keys <= set(CARRIED[kind]):
        raise PromptError(
            f"{name} has the keys {sorted(map(str, part))}; give {{'type': {kind!r}}} alone, or what "
            f"it shows under {' or '.join(map(repr, CARRIED[kind]))} beside it."
        )
    carried = None
    for key in keys:
        carried = part[key]
        if carried is None:
            raise PromptError(f"{name} has {key} None; give what it shows, or leave the key out.")
    media.append((str(kind), carried))
    return {"type": str(kind)}


def _text(text: object, name: str) -> str:
    """A plain str that a tokenizer takes."""
    if not isinstance(text, str):
        raise PromptError(f"{name}: a prompt is text, not {type(text).__name__}; pass a str.")
    plain = str.__str__(text)
    if "\0" in plain:
        raise PromptError(f"{name}: the prompt has a NUL character in it; remove it.")
    try:
        plain.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{name}: the prompt has half a surrogate pair at character {error.start}; decode its "
            "source with the right encoding."
        ) from error
    return plain
