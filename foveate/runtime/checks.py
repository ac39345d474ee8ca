"""What single arguments may be: each check gives a plain value, or an error that names the argument."""

import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np

from foveate.errors import FoveateError

MOST_ITEMS = 1 << 18
"""The most items of a list of numbers: endless ones end here."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


class Unfit(Exception):
    """A value that a check does not take."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one argument may be.

    Attributes:
        error: What is raised for any other value.
        wanted: What may be given, in words.
        read: Gives the value as a plain one of Python's, or raises `Unfit`.
    """

    error: type[FoveateError]
    wanted: str
    read: Callable[[Any], Any]

    def __call__(self, name: str, value: object) -> Any:
        """The argument `name` as a plain value, or the error."""
        try:
            return self.read(value)
        except Unfit:
            raise self.error(f"{name} is {shown(value)}; give {self.wanted}") from None


def shown(value: object) -> str:
    """A value as an error shows it: on one line, and not longer than that."""
    try:
        text = _REPR.repr(value)
    except Exception:
        text = f"a {type(value).__name__} that cannot be shown"
    return " ".join(text.split())[:200]


def whole(error: type[FoveateError], least: int, most: int | None = None, hint: str = "") -> Check:
    """A whole number from `least` to `most`, of Python's or numpy's."""
    span = f"from {least} on" if most is None else f"from {least} to {most}"

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise Unfit
        number = int(value)
        if number < least or (most is not None and number > most):
            raise Unfit
        return number

    return Check(error, f"a whole number {span}{hint}", read)


def number(error: type[FoveateError], wanted: str, fits: Callable[[float], bool]) -> Check:
    """A finite real number that fits, of Python's or numpy's, or a fraction."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise Unfit
        try:
            found = float(value)
        except OverflowError:
            raise Unfit from None
        if not (isfinite(found) and fits(found)):
            raise Unfit
        return found

    return Check(error, wanted, read)


def flag(error: type[FoveateError]) -> Check:
    """True or False."""

    def read(value: Any) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise Unfit
        return bool(value)

    return Check(error, "True or False", read)


def text(error: type[FoveateError], wanted: str, among: Collection[str] | None = None) -> Check:
    """A str, where `among` is given one of those."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or (among is not None and value not in among):
            raise Unfit
        return str.__str__(value)

    return Check(error, wanted, read)


def instance(error: type[FoveateError], kind: type, wanted: str) -> Check:
    """An object of one class."""

    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise Unfit
        return value

    return Check(error, wanted, read)


def items_of(value: Any) -> Iterator[Any] | None:
    """The items of a list, an array, or whatever else gives some; None for text, a mapping and the rest."""
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)):
        return None
    try:
        items: Iterator[Any] = iter(value)
    except TypeError:
        return None
    return items


def whole_numbers(error: type[FoveateError], wanted: str) -> Check:
    """Several whole numbers from 0 on: a list, an array, or whatever gives them, once."""
    one = whole(error, 0)

    def read(value: Any) -> tuple[int, ...]:
        items = items_of(value)
        if items is None:
            raise Unfit
        found = tuple(one.read(item) for item in islice(items, MOST_ITEMS + 1))
        if len(found) > MOST_ITEMS:
            raise error(f"more than {MOST_ITEMS} numbers were given; give {wanted}")
        return found

    return Check(error, wanted, read)


def optional(check: Check) -> Check:
    """What `check` takes, or None."""
    return Check(
        check.error,
        f"{check.wanted}, or None",
        lambda value: None if value is None else check.read(value),
    )
