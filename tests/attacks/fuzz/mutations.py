"""What spoils a file: JSON by its structure, everything else by its bytes, and both by a fixed seed."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any

Json = Any
DEEP = 3000
HUGE = "<huge>"
"""Stands for an integer that Python's own json does not write; see `dumps`."""
VALUES: tuple[Json, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**20, 2**31 - 1, 2**31, 2**32, 2**32 - 1, 2**53 + 1,
    2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), 0.0, -0.0, 0.5, 1.5, -1.5, 1e-300, 1e308, float("inf"),
    float("-inf"), float("nan"), HUGE, "", " ", "0", "1", "x", "fp16", "float16", "contrib", "qwen2_vl",
    "\u202e\u0000", "\ud800", "é" * 300, "a" * 5000, "../outside", "/etc/passwd", "C:\\x", "a/../b",
    "manifest.json", "{{ 1/0 }}", "<|image_pad|>", [], {}, [[]], [0], [1, 2, 3], [None], ["x"],
    {"a": {}}, [0] * 5000, {"": 0}, {"x": [1, {"y": None}]},
)  # fmt: skip


def places(document: Json, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value of a document, by the keys that lead to it."""
    yield way
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*way, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from places(value, (*way, index))


def at(document: Json, way: tuple[Any, ...]) -> Json:
    """The value at a place."""
    for key in way:
        document = document[key]
    return document


def mutate_json(document: Json, random: Random) -> Json:
    """A copy of a document with one to three of its values, keys or orders changed."""
    document = deepcopy(document)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        ways = list(places(document))
        way = ways[random.randrange(len(ways))]
        if not way:
            if random.random() < 0.1:
                document = deepcopy(random.choice(VALUES))
            continue
        _change(document, way, ways, random)
    return document


def _change(
    document: Json, way: tuple[Any, ...], ways: list[tuple[Any, ...]], random: Random
) -> None:
    """Change one value in place."""
    holder, key = at(document, way[:-1]), way[-1]
    value = holder[key]
    kind = random.randrange(10)
    if kind < 3:
        holder[key] = deepcopy(random.choice(VALUES))
    elif kind == 3:
        del holder[key]
    elif kind == 4 and isinstance(holder, dict):
        name = random.choice(("extra", key + "s", key.upper(), "", "é", "__class__", "0"))
        holder[name] = deepcopy(value)
        if random.random() < 0.5:
            del holder[key]
    elif kind == 5:
        holder[key] = deepcopy(at(document, random.choice(ways)))
    elif kind == 6 and isinstance(value, list):
        change = random.choice((list.reverse, lambda some: some.append(deepcopy(some[0]))))
        if value:
            change(value)
    elif isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, int | float):
        holder[key] = random.choice(
            (
                value + 1,
                value - 1,
                -value,
                value * 2,
                value * 65536,
                float(value),
                str(value),
                [value],
            )
        )
    elif isinstance(value, str):
        holder[key] = random.choice((value + "x", value[:-1], value.upper(), value * 20, [value]))
    else:
        nested: Json = 0
        for _ in range(random.choice((3, 20, 200))):
            nested = random.choice(([nested], {"a": nested}))
        holder[key] = nested


def dumps(document: Json, random: Random) -> bytes:
    """A document as bytes, at times with what a JSON library would not write."""
    text = json.dumps(document).replace(f'"{HUGE}"', "9" * 400)
    kind = random.randrange(40)
    if kind == 0:
        name = json.dumps(random.choice(list(_keys(document)) or ["a"]))
        text = text.replace(f"{name}: ", f"{name}: 1, {name}: ", 1)
    elif kind == 1:
        text = text.replace(": ", ": " + "[" * DEEP, 1)
    elif kind == 2:
        text = text.replace(": ", ": " + "[" * DEEP + "]" * DEEP + ", " + '"z": ', 1)
    data = text.encode("utf-8", "surrogatepass")
    if kind == 3:
        data = text.encode("utf-16")
    elif kind == 4:
        data = b"\xef\xbb\xbf" + data
    elif kind in (5, 6):
        data = mutate_bytes(data, random)
    return data


def _keys(document: Json) -> Iterator[str]:
    """Every key of a document."""
    for way in places(document):
        if way and isinstance(way[-1], str):
            yield way[-1]


def _flip(data: bytearray, random: Random) -> None:
    for _ in range(random.choice((1, 1, 2, 8))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _cut(data: bytearray, random: Random) -> None:
    del data[random.randrange(len(data)) :]


def _drop(data: bytearray, random: Random) -> None:
    start = random.randrange(len(data))
    del data[start : start + random.choice((1, 4, 64, 1024))]


def _double(data: bytearray, random: Random) -> None:
    start, size = random.randrange(len(data)), random.choice((1, 4, 64, 1024))
    data[start:start] = data[start : start + size]


def _number(data: bytearray, random: Random) -> None:
    size = random.choice((1, 2, 4, 8))
    start = random.randrange(max(1, len(data) - size))
    value = random.choice((0, 1, 2**7, 2**8 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
    order = random.choice(("little", "big"))
    data[start : start + size] = (value % 256**size).to_bytes(size, order)  # type: ignore[arg-type]


def _insert(data: bytearray, random: Random) -> None:
    start = random.randrange(len(data) + 1)
    data[start:start] = random.randbytes(random.choice((1, 8, 300)))


def _blank(data: bytearray, random: Random) -> None:
    start = random.randrange(len(data))
    size = len(data[start : start + random.choice((4, 64, 4096))])
    data[start : start + size] = random.choice((b"\0", b"\xff")) * size


_BYTES: tuple[Callable[[bytearray, Random], None], ...] = (
    _flip, _flip, _flip, _cut, _drop, _double, _number, _number, _insert, _blank,
)  # fmt: skip


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """A copy of a file with bits flipped, parts cut, repeated or blanked, or numbers set to extremes."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if changed:
            random.choice(_BYTES)(changed, random)
    return bytes(changed)
