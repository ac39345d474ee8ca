"""Where an ONNX graph keeps weights outside itself, read from its bytes without onnx."""

import mmap
from collections.abc import Iterator
from pathlib import Path

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


def external_data(graph: Path) -> set[str]:
    """Where an ONNX graph keeps weights outside itself; ValueError when it cannot be parsed."""
    found: set[str] = set()
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
                    found.add(entry["location"])
    return found


def _pair(data: mmap.mmap, start: int, end: int) -> tuple[str, str]:
    """A key and its value."""
    pair = {number: data[first:last] for number, first, last in fields(data, start, end)}
    return pair.get(1, b"").decode(), pair.get(2, b"").decode()


def fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a protobuf message that have a length, as (number, start, end)."""
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2 and tag < 1 << 32:
            size, at = _varint(data, at)
            yield tag >> 3, at, at + size
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
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


def weight_shapes(graph: Path) -> set[tuple[int, ...]]:
    """The shapes of the weights of an ONNX graph; ValueError when it cannot be parsed."""
    with open(graph, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        spans = [(0, len(data))]
        for wanted in (7, 5):
            spans = [
                (first, last)
                for span in spans
                for number, first, last in fields(data, *span)
                if number == wanted
            ]
        return {tuple(_sizes(data, *span)) for span in spans}


def _sizes(data: mmap.mmap, at: int, end: int) -> Iterator[int]:
    """The sizes of a tensor's axes: its field 1, number by number or packed."""
    while at < end:
        tag, after = _varint(data, at)
        if tag == 1 << 3:
            size, at = _varint(data, after)
            yield size
        elif tag == 1 << 3 | 2:
            length, at = _varint(data, after)
            last = at + length
            while at < last:
                size, at = _varint(data, at)
                yield size
        else:
            # Sizes come first in what writers of ONNX give.
            return
