"""Reads the output shapes of an ONNX graph's TopK nodes from the file's bytes, without onnx."""

import mmap
from collections.abc import Iterator
from pathlib import Path

from foveate.bundle.onnx_file import fields

# Field numbers of ONNX's messages.
GRAPH, NODE, OUTPUT, VALUE = 7, 1, 12, 13
NODE_OUTPUT, NODE_NAME, NODE_OPERATOR = 2, 3, 4
VALUE_NAME, VALUE_TYPE, TENSOR, SHAPE, AXIS, AXIS_NAME = 1, 2, 1, 2, 1, 2

Span = tuple[int, int]


def topk_axes(graph: Path) -> dict[str, list[str | None]]:
    """The axes of each TopK's output, by the node's name: an axis is its name, or None if it has none.

    Raises:
        ValueError: The file is no ONNX graph.
    """
    with open(graph, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        (body,) = _parts(data, (0, len(data)), GRAPH)
        shapes = {}
        for value in (*_parts(data, body, VALUE), *_parts(data, body, OUTPUT)):
            for name in _parts(data, value, VALUE_NAME):
                shapes[_text(data, name)] = list(_axes(data, value))
        found = {}
        for node in _parts(data, body, NODE):
            if [_text(data, part) for part in _parts(data, node, NODE_OPERATOR)] == ["TopK"]:
                outputs = (_text(data, part) for part in _parts(data, node, NODE_OUTPUT))
                axes = next((shapes[output] for output in outputs if output in shapes), [])
                for name in _parts(data, node, NODE_NAME):
                    found[_text(data, name)] = axes
        return found


def _axes(data: mmap.mmap, value: Span) -> Iterator[str | None]:
    """The axes of a tensor: their names, or None."""
    spans = [value]
    for number in (VALUE_TYPE, TENSOR, SHAPE, AXIS):
        spans = [part for span in spans for part in _parts(data, span, number)]
    for span in spans:
        yield next((_text(data, name) for name in _parts(data, span, AXIS_NAME)), None)


def _parts(data: mmap.mmap, message: Span, wanted: int) -> Iterator[Span]:
    """Where the fields with one number are in a message."""
    return ((start, end) for number, start, end in fields(data, *message) if number == wanted)


def _text(data: mmap.mmap, span: Span) -> str:
    """The text of a field."""
    return data[span[0] : span[1]].decode()
