"""A float32 copy of a 16-bit graph: the same operators and weights, runnable where 16 bits are not."""

from pathlib import Path

import onnx_ir as ir

from foveate.atomic_write import link_or_copy

FLOAT = ir.DataType.FLOAT
HALVES = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)


def write_float32_copy(source: Path, target: Path) -> Path:
    """Write a copy of the graph whose 16-bit floats are float32; its weights are cast as they load.

    Weights stay in the source's data file, which the copy finds linked (or copied) beside it.
    """
    model = ir.load(source)
    graph = model.graph
    first = next(iter(graph))
    for value in list(graph.initializers.values()):
        if value.dtype in HALVES and value.uses():
            cast = ir.node("Cast", [value], attributes={"to": FLOAT}, name=f"{value.name}_cast")
            users = [(use.node, use.idx) for use in value.uses() if use.node is not cast]
            for node, index in users:
                node.replace_input_with(index, cast.outputs[0])
            graph.insert_before(first, cast)
    kept = set(graph.initializers.values())
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    for node in nodes:
        if node.op_type == "Cast" and node.attributes["to"].as_int() in HALVES:
            node.attributes["to"] = ir.AttrInt64("to", FLOAT)
        if node.op_type == "Constant" and node.attributes["value"].as_tensor().dtype in HALVES:
            values = node.attributes["value"].as_tensor().numpy().astype("float32")
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(values))
    graphs = [graph, *(node.graph for node in nodes if isinstance(node.graph, ir.Graph))]
    given = [value for one in graphs for value in one.inputs]
    for value in [*given, *(output for node in nodes for output in node.outputs)]:
        if value.dtype in HALVES and value not in kept:
            value.dtype = FLOAT
    target.parent.mkdir(parents=True, exist_ok=True)
    data = source.with_name(source.name + ".data")
    if data.exists():
        link_or_copy(data, target.with_name(data.name))
    ir.save(model, target)
    return target
