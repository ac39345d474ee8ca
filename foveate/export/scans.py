"""Makes Scans of what `foveate.modeling.blocks` marks, so that a graph holds one block of it at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import onnx_ir as ir

from foveate.errors import ExportError
from foveate.modeling.blocks import DOMAIN, ENTER


@dataclass(slots=True)
class Marks:
    """Where a part begins, and where it ends."""

    entered: list[ir.Node] = field(default_factory=list)
    left: list[ir.Node] = field(default_factory=list)


def make_scans(graph: ir.Graph) -> None:
    """Put a Scan, and what cuts and joins its blocks, in the place of each marked part.

    Raises:
        ExportError: What is computed of a block is an output of the graph.
    """
    for part in _parts(graph):
        _make_scan(graph, part)
    graph.opset_imports.pop(DOMAIN, None)


def _parts(graph: ir.Graph) -> list[Marks]:
    """The marked parts in the order of their ends: inner ones first."""
    parts: dict[int, Marks] = {}
    for node in graph:
        if node.domain != DOMAIN:
            continue
        number = node.attributes["part"].as_int()
        marks = parts.setdefault(number, Marks())
        if node.op_type == ENTER:
            marks.entered.append(node)
        else:
            marks.left.append(node)
            parts[number] = parts.pop(number)
    return list(parts.values())


def _make_scan(graph: ir.Graph, part: Marks) -> None:
    """One Scan of all that is between a part's marks."""
    nodes = _between(graph, part)
    cuts, blocks = [_cut(mark) for mark in part.entered], [_block(mark) for mark in part.entered]
    made = [value for mark in part.left if (value := mark.inputs[0]) is not None]
    graph.remove(nodes)
    for node in nodes:
        _free(graph, node)
    scan = ir.node(
        "Scan",
        [cut[-1].outputs[0] for cut in cuts],
        {
            "body": ir.Graph(blocks, made, nodes=nodes, name=_name(part)),
            "num_scan_inputs": len(blocks),
        },
        num_outputs=len(made),
        name=f"{part.left[0].outputs[0].name}.scan",
    )
    joins = [
        _joined(graph, mark, stacked) for mark, stacked in zip(part.left, scan.outputs, strict=True)
    ]
    graph.insert_after(part.left[-1], [*chain(*cuts), scan, *chain(*joins)])
    graph.remove([*part.left, *part.entered], safe=True)


def _cut(mark: ir.Node) -> list[ir.Node]:
    """What pads a tensor and cuts it into blocks."""
    (given,), (whole, shape, pads, stacked) = mark.outputs, mark.inputs
    flat = _made("Reshape", [whole, shape], f"{given.name}.flat", given)
    padded = _made("Pad", [flat.outputs[0], pads], f"{given.name}.padded", given)
    return [
        flat,
        padded,
        _made("Reshape", [padded.outputs[0], stacked], f"{given.name}.blocks", given),
    ]


def _block(mark: ir.Node) -> ir.Value:
    """The body's input that stands for one block of what is marked."""
    (given,) = mark.outputs
    block = ir.Value(name=f"{given.name}.block", type=given.type, shape=_shape(given))
    given.replace_all_uses_with(block)
    return block


def _joined(graph: ir.Graph, mark: ir.Node, stacked: ir.Value) -> list[ir.Node]:
    """What joins blocks to a tensor and takes the padding off; it is used in the place of `mark`."""
    (result,), (_, shape, end, whole) = mark.outputs, mark.inputs
    stacked.name, stacked.type = f"{result.name}.blocks", result.type
    axis = _constant(graph, mark.attributes["axis"].as_int())
    padded = _made("Reshape", [stacked, shape], f"{result.name}.padded", result)
    cut = [padded.outputs[0], _constant(graph, 0), end, axis]
    flat = _made("Slice", cut, f"{result.name}.flat", result)
    join = _made("Reshape", [flat.outputs[0], whole], f"{result.name}.whole", result)
    join.outputs[0].shape = result.shape
    result.replace_all_uses_with(join.outputs[0], replace_graph_outputs=True)
    # Under the name of an output of the graph, if it is one.
    result.name, join.outputs[0].name = join.outputs[0].name, result.name
    return [padded, flat, join]


def _made(kind: str, inputs: list[ir.Value | None], name: str, like: ir.Value) -> ir.Node:
    """A node whose output is so named and of another value's type."""
    node = ir.node(kind, inputs, name=f"{name}.{kind}")
    node.outputs[0].name, node.outputs[0].type = name, like.type
    return node


def _free(graph: ir.Graph, node: ir.Node) -> None:
    """Make a node of a part one of blocks of any length."""
    shape = node.outputs[0].shape
    if node.op_type == "Reshape" and shape is not None:
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) == 1:
            node.replace_input_with(1, _constant(graph, *sizes))
    for value in node.outputs:
        value.shape = _shape(value)


def _shape(value: ir.Value) -> ir.Shape | None:
    """A value's shape in a block: its rank alone."""
    return None if value.shape is None else ir.Shape([None] * len(value.shape))


def _constant(graph: ir.Graph, *numbers: int) -> ir.Value:
    """An initializer int64."""
    name = f"blocks.{'x'.join(map(str, numbers))}"
    if name not in graph.initializers:
        tensor = ir.tensor(numbers, ir.DataType.INT64, name=name)
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, type=kind, shape=ir.Shape([len(numbers)]), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def _between(graph: ir.Graph, part: Marks) -> list[ir.Node]:
    """The nodes between a part's marks, in order."""
    reached = {value for mark in part.entered for value in mark.outputs}
    nodes, left = list[ir.Node](), set[ir.Node]()
    for node in graph:
        if reached.isdisjoint(_used(node)):
            continue
        if node in part.left:
            left.add(node)
            continue
        nodes.append(node)
        reached.update(node.outputs)
    if len(left) < len(part.left) or not reached.isdisjoint(graph.outputs):
        raise ExportError(f"blocks of {_name(part)} are used otherwise than all together")
    return nodes


def _name(part: Marks) -> str:
    """What is cut into blocks."""
    return part.left[0].attributes["name"].as_string()


def _used(node: ir.Node) -> Iterator[ir.Value]:
    """What a node takes, what is within its bodies included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in ir.traversal.RecursiveGraphIterator(attribute.as_graph()):
                yield from (value for value in inner.inputs if value is not None)
