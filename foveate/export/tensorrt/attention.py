"""Rewrites attention that a graph computes in blocks of queries to attention over all of them at once.

The blocks, a Scan, bound the memory of libraries that hold every attention score. TensorRT bounds it by
kernels of its own, which it does not find in a loop.
"""

from pathlib import Path

from foveate.errors import ExportError
from foveate.export.tensorrt.rewriter import Node, Rewriter

BEFORE, AFTER = ("Transpose", "Reshape", "Pad"), ("Transpose", "Reshape", "Slice")
"""What cuts queries into blocks, from the Scan up; and what puts its output together, from the Scan down."""
SCAN = b'"\x04Scan'
"""A node's operator as a file has it: the field's number, the length, the text."""


def has_blocks(graph: Path) -> bool:
    """Whether an ONNX file, its weights beside it, has attention in blocks."""
    return SCAN in graph.read_bytes()


def inline_blocks(rewriter: Rewriter) -> None:
    """Put what each Scan does to a block in its place, done to all; nodes that nothing needs are dropped.

    Raises:
        ExportError: A Scan that is not as foveate exports it.
    """
    nodes = list(rewriter.graph.node)
    makers = {name: node for node in nodes for name in node.output}
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    if all(node.op_type != "Scan" for node in nodes):
        return
    whole: list[Node] = []
    for node in nodes:
        if node.op_type != "Scan":
            whole.append(node)
            continue
        given, made = node.input[-1], node.output[-1]
        for kind in BEFORE:
            given = _expected(node, makers.get(given), kind).input[0]
        for kind in AFTER:
            (user,) = users.get(made, [None])
            made = _expected(node, user, kind).output[0]
        makers[made].output[0] = f"{made}.unused"
        whole += _inlined(rewriter, node, given, made)
    rewriter.set_needed(whole)


def _expected(scan: Node, node: Node | None, kind: str) -> Node:
    """The node, if it is of this kind; ExportError where it is not."""
    if node is None or node.op_type != kind:
        found = "nothing" if node is None else node.op_type
        raise ExportError(
            f"TensorRT would compute the loop {scan.name} slowly, and it cannot be rewritten: {found} "
            f"is where a {kind} was expected. Export the checkpoint again with this version of foveate."
        )
    return node


def _inlined(rewriter: Rewriter, scan: Node, given: str, made: str) -> list[Node]:
    """The nodes of a Scan's body, which read `given` and whose last output is `made`."""
    (body,) = (one.g for one in scan.attribute if one.name == "body")
    names = {body.input[-1].name: given, body.output[-1].name: made}
    inner = {name for node in body.node for name in node.output} - names.keys()
    names |= {name: f"{made}.{name}" for name in inner}
    copies = []
    for node in body.node:
        copy = type(node)()
        copy.CopyFrom(node)
        for field in (copy.input, copy.output):
            field[:] = [names.get(name, name) for name in field]
        copy.name = f"{made}.{node.name}"
        copies.append(copy)
    return copies
