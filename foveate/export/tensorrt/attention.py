"""Rewrites what a graph computes in blocks, attention above all, to what computes all of it at once.

The blocks, a Scan, bound the memory of libraries that hold every attention score. TensorRT bounds it by
kernels of its own, which it does not find in a loop.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.errors import ExportError
from foveate.export.tensorrt.rewriter import Node, Rewriter

BEFORE, AFTER = ("Reshape", "Pad", "Reshape"), ("Reshape", "Slice", "Reshape")
"""What cuts a tensor into blocks, from the Scan up; and what joins its output, from the Scan down."""
SCAN = b'"\x04Scan'
"""A node's operator as a file has it: the field's number, the length, the text."""


def has_blocks(graph: Path) -> bool:
    """Whether an ONNX file, its weights beside it, computes something in blocks."""
    return SCAN in graph.read_bytes()


def inline_blocks(rewriter: Rewriter) -> None:
    """Put what each Scan does to a block in its place, done to all; nodes that nothing needs are dropped.

    Raises:
        ExportError: A Scan that is not as foveate exports it.
    """
    nodes = list(rewriter.graph.node)
    if not _has_scan(nodes):
        return
    while _has_scan(nodes):
        nodes = _without_outer(nodes)
    rewriter.set_needed(nodes)


def _has_scan(nodes: Sequence[Node]) -> bool:
    """Whether one of the nodes is a Scan."""
    return any(node.op_type == "Scan" for node in nodes)


def _without_outer(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with the bodies of Scans in their places, where there may be Scans again."""
    makers = {name: node for node in nodes for name in node.output}
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    whole: list[Node] = []
    for node in nodes:
        if node.op_type != "Scan":
            whole.append(node)
            continue
        given, made = list(node.input), list(node.output)
        for kind in BEFORE:
            given = [_expected(node, makers.get(name), kind).input[0] for name in given]
        for kind in AFTER:
            nexts = [users[name][0] if len(users.get(name, ())) == 1 else None for name in made]
            made = [_expected(node, user, kind).output[0] for user in nexts]
        for name in made:
            makers[name].output[0] = f"{name}.unused"
        whole += _body(node, given, made)
    return whole


def _expected(scan: Node, node: Node | None, kind: str) -> Node:
    """The node, if it is of this kind; ExportError where it is not."""
    if node is None or node.op_type != kind:
        found = "nothing" if node is None else node.op_type
        raise ExportError(
            f"TensorRT would compute the loop {scan.name} slowly, and it cannot be rewritten: {found} "
            f"is where a {kind} was expected. Export the checkpoint again with this version of foveate."
        )
    return node


def _body(node: Node, given: Sequence[str], made: Sequence[str]) -> list[Node]:
    """The nodes of a Scan's body, which read `given` and give `made`."""
    (body,) = (one.g for one in node.attribute if one.name == "body")
    names = dict(zip((value.name for value in body.input), given, strict=True))
    names |= zip((value.name for value in body.output), made, strict=True)
    copies = list(body.node)
    for copy in copies:
        _rename(copy, names)
    return copies


def _rename(node: Node, names: Mapping[str, str]) -> None:
    """Rename what a node takes and gives, within its bodies too."""
    for field in (node.input, node.output):
        field[:] = [names.get(name, name) for name in field]
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _rename(inner, names)
