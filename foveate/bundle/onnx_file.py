"""What an ONNX graph takes, gives and keeps outside itself, read from its bytes without onnx."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foveate.bundle.manifest import DType, GraphSpec, TensorSpec

# The messages of ONNX that lead to its tensors: field number → message, by message.
_ONNX = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
# Field numbers of the messages that describe a graph's inputs and outputs.
_GRAPH, _OPSET, _DOMAIN, _VERSION = 7, 8, 1, 2
_INITIALIZER, _INPUT, _OUTPUT, _TENSOR_NAME, _SIZES = 5, 11, 12, 8, 1
_NAME, _TYPE, _TENSOR, _ELEMENT, _SHAPE, _AXIS, _AXIS_SIZE, _AXIS_NAME = 1, 2, 1, 1, 2, 1, 1, 2
_DTYPES: dict[int, DType] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
_FREE = "free"
"""The name of an axis that has neither size nor name."""

_Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class External:
    """Where a tensor's weights are: a path from the graph's folder, and how many bytes it needs."""

    location: str
    end: int


def external_data(graph: Path) -> set[str]:
    """Where an ONNX graph keeps weights outside itself; ValueError when it cannot be parsed."""
    return {one.location for one in external_tensors(graph)}


def external_tensors(graph: Path) -> list[External]:
    """Every tensor that an ONNX graph keeps outside itself.

    Raises:
        ValueError: The file cannot be parsed.
    """
    found: list[External] = []
    with open(graph, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        todo = [("model", 0, len(data))]
        while todo:
            message, start, end = todo.pop()
            inner = _ONNX[message]
            parts = [
                (inner[number], first, last)
                for number, first, last in fields(data, start, end)
                if number in inner
            ]
            if message != "tensor":
                todo += parts
            else:
                entry = dict(_pair(data, first, last) for _, first, last in parts)
                if "location" in entry:
                    end = _number(entry.get("offset", "0")) + _number(entry.get("length", "0"))
                    found.append(External(entry["location"], end))
    return found


def graph_spec(graph: Path) -> GraphSpec:
    """What an ONNX graph takes and gives.

    Raises:
        ValueError: The file cannot be parsed, or has a type that no graph of a bundle has.
    """
    with open(graph, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        whole = (0, len(data))
        body = _one(data, whole, _GRAPH)
        opsets = {
            _text(data, opset, _DOMAIN): _integer(data, opset, _VERSION)
            for opset in _parts(data, whole, _OPSET)
        }
        found: dict[int, list[_Span]] = {_INITIALIZER: [], _INPUT: [], _OUTPUT: []}
        for number, start, end in fields(data, *body):
            if number in found:
                found[number].append((start, end))
        inputs = [_tensor(data, value) for value in found[_INPUT]]
        names = {tensor.name for tensor in inputs}
        weights = {_text(data, one, _TENSOR_NAME) for one in found[_INITIALIZER]} & names
        return GraphSpec(
            opset=opsets.get("", opsets.get("ai.onnx", 0)),
            inputs=[tensor for tensor in inputs if tensor.name not in weights],
            outputs=[_tensor(data, value) for value in found[_OUTPUT]],
        )


def weight_shapes(graph: Path) -> set[tuple[int, ...]]:
    """The shapes of the weights of an ONNX graph; ValueError when it cannot be parsed."""
    with open(graph, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        body = _one(data, (0, len(data)), _GRAPH)
        return {tuple(_sizes(data, one)) for one in _parts(data, body, _INITIALIZER)}


def _sizes(data: mmap.mmap, tensor: _Span) -> Iterator[int]:
    """The sizes of a weight's axes, which stand in its message number by number or packed."""
    for number, kind, start, end in _scan(data, *tensor):
        if (number, kind) == (_SIZES, 0):
            yield start
        while (number, kind) == (_SIZES, 2) and start < end:
            size, start = _varint(data, start)
            yield size


def _tensor(data: mmap.mmap, value: _Span) -> TensorSpec:
    """An input or output."""
    tensor = _one(data, _one(data, value, _TYPE), _TENSOR)
    element = _integer(data, tensor, _ELEMENT)
    if element not in _DTYPES:
        raise ValueError(f"a tensor of the type {element}")
    axes = [
        _integer(data, axis, _AXIS_SIZE)
        if any(number == _AXIS_SIZE for number, *_ in _scan(data, *axis))
        else _text(data, axis, _AXIS_NAME) or _FREE
        for axis in _parts(data, _one(data, tensor, _SHAPE), _AXIS)
    ]
    return TensorSpec(name=_text(data, value, _NAME), dtype=_DTYPES[element], shape=axes)


def _parts(data: mmap.mmap, message: _Span, wanted: int) -> Iterator[_Span]:
    """Where the fields with one number are in a message."""
    return ((start, end) for number, start, end in fields(data, *message) if number == wanted)


def _one(data: mmap.mmap, message: _Span, wanted: int) -> _Span:
    """Where the only field with a number is; parsers would merge several."""
    parts = list(_parts(data, message, wanted))
    if len(parts) != 1:
        raise ValueError(f"{len(parts)} fields where one is to be")
    return parts[0]


def _text(data: mmap.mmap, message: _Span, wanted: int) -> str:
    """The text of a field, the last of several; empty where there is none."""
    return next((data[a:b].decode() for a, b in [*_parts(data, message, wanted)][::-1]), "")


def _integer(data: mmap.mmap, message: _Span, wanted: int) -> int:
    """The integer of a field, the last of several; 0 where there is none."""
    found = [
        value for number, kind, value, _ in _scan(data, *message) if (number, kind) == (wanted, 0)
    ]
    return found[-1] if found else 0


def _number(text: str) -> int:
    """A size in decimal digits."""
    if not text.isdecimal() or len(text) > 19:
        raise ValueError("an offset that is no number")
    return int(text)


def _pair(data: mmap.mmap, start: int, end: int) -> tuple[str, str]:
    """A key and its value."""
    pair = {number: data[first:last] for number, first, last in fields(data, start, end)}
    return pair.get(1, b"").decode(), pair.get(2, b"").decode()


def fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a protobuf message that have a length, as (number, start, end)."""
    return ((number, a, b) for number, kind, a, b in _scan(data, at, end) if kind == 2)


def _scan(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """All fields of a protobuf message, as (number, kind, start, end), or the value as start."""
    while at < end:
        tag, at = (data[at], at + 1) if at < len(data) and data[at] < 128 else _varint(data, at)
        kind = tag & 7
        if kind == 2 and tag < 1 << 32:
            size, at = (
                (data[at], at + 1) if at < len(data) and data[at] < 128 else _varint(data, at)
            )
            yield tag >> 3, kind, at, at + size
            at += size
        elif kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, kind, value, at
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("a field that ONNX does not have")
    if at != end:
        raise ValueError("a field that goes past its message")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A protobuf integer, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("an integer without an end")
