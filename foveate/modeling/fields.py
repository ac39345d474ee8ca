"""What becomes of each field of a checkpoint's settings: honoured, refused, or without effect.

A table of fields is what the export checks a file against. A field that no table knows is refused too,
so that nothing in a checkpoint is ignored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from foveate.errors import CheckpointError

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Ratio = Annotated[float, msgspec.Meta(gt=0, le=1)]
Factor = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Number = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]


@dataclass(frozen=True, slots=True)
class Honoured:
    """A field that counts.

    Attributes:
        type: What its value must be, as msgspec takes types; null is always the same as no field.
    """

    type: Any


@dataclass(frozen=True, slots=True)
class NoEffect:
    """A field that changes no answer.

    Attributes:
        because: Why it does not.
    """

    because: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that asks for what Foveate does not do.

    Attributes:
        because: What that is.
        unless: The values that do not ask for it, beside null; or a test of a value and of the
            settings around it.
        fix: What the user can do.
    """

    because: str
    unless: tuple[Any, ...] | Callable[[Any, Mapping[str, Any]], bool] = ()
    fix: str = "remove it, if the model does without"

    def allows(self, value: Any, section: Mapping[str, Any]) -> bool:
        """Whether a value does not ask for it."""
        if callable(self.unless):
            return self.unless(value, section)
        return any(type(value) is type(one) and value == one for one in self.unless)


Rule = Honoured | NoEffect | Refused
Table = Mapping[str, Rule]
"""The rule of each field by its name."""


def check_fields(section: Mapping[str, Any], table: Table, file: str, part: str = "") -> None:
    """Refuse what a part of a file asks for and would not get.

    Args:
        section: The fields.
        table: Their rules.
        file: The file as the user named it.
        part: Where in it they stand, for instance "text_config".

    Raises:
        CheckpointError: A field that is refused or unknown, or has a value of the wrong kind.
    """
    for name, value in section.items():
        if value is None:
            continue
        field = f"{file}: {part}.{name}" if part else f"{file}: {name}"
        rule = table.get(name)
        if rule is None and value not in ("", [], {}):
            raise CheckpointError(
                f"{field} is {brief(value)}, a field that Foveate does not know and therefore would "
                "ignore; remove it, if the model does without"
            )
        if isinstance(rule, Refused) and not rule.allows(value, section):
            raise CheckpointError(f"{field} is {brief(value)}: {rule.because}; {rule.fix}")
        if isinstance(rule, Honoured):
            read_as(rule.type, value, field)


def read_as(kind: Any, value: Any, field: str) -> Any:
    """A value of a file as the type that it must have.

    Args:
        kind: The type, as msgspec takes it.
        value: The value, read from JSON.
        field: The file and the field, for the message.

    Raises:
        CheckpointError: It is of another type or out of range.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise CheckpointError(
            f"{field} is {brief(value)}, which it cannot be ({error}); correct it"
        ) from error


def brief(value: Any) -> str:
    """A value from a file, fit for a message: at most 60 characters of one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
