"""What spoils an ONNX graph: its structure, so that a parser takes it and an engine must find the fault."""

from random import Random
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper

SIZES = (0, 1, -1, 2, 3, 7, 64, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))
OPERATORS = (
    "Add", "MatMul", "Reshape", "Gather", "Concat", "Slice", "TopK", "Softmax", "Loop", "If", "Scan",
    "Constant", "Cast", "Nonsense", "ConvTranspose", "Resize", "Range", "ScatterND", "Einsum", "Identity",
)  # fmt: skip


def mutate_graph(model: onnx.ModelProto, random: Random) -> bytes:
    """The bytes of a graph with one to three things changed."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(random.choice((1, 1, 2, 3))):
        random.choice(_CHANGES)(changed, random)
    return changed.SerializeToString()


def _node(model: onnx.ModelProto, random: Random) -> Any:
    return model.graph.node[random.randrange(len(model.graph.node))]


def _name(model: onnx.ModelProto, random: Random) -> str:
    """The name of a value somewhere in the graph, or of none."""
    names = [*_node(model, random).output, *_node(model, random).input, "", "nowhere", "x" * 3000]
    return random.choice(names)


def _operator(model: onnx.ModelProto, random: Random) -> None:
    _node(model, random).op_type = random.choice(OPERATORS)


def _domain(model: onnx.ModelProto, random: Random) -> None:
    _node(model, random).domain = random.choice(("com.microsoft", "ai.onnx.ml", "nowhere", "é"))


def _input(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if node.input:
        node.input[random.randrange(len(node.input))] = _name(model, random)


def _inputs(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if node.input and random.random() < 0.5:
        node.input.pop()
    else:
        node.input.append(_name(model, random))


def _output(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    node.output[random.randrange(len(node.output))] = _name(model, random)


def _cycle(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if node.input:
        node.input[0] = node.output[0]


def _attribute(model: onnx.ModelProto, random: Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    node = nodes[random.randrange(len(nodes))]
    attribute = node.attribute[random.randrange(len(node.attribute))]
    if attribute.type == AttributeProto.INT:
        attribute.i = random.choice(SIZES)
    elif attribute.type == AttributeProto.INTS:
        attribute.ints.append(random.choice(SIZES))
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = random.choice((float("nan"), float("inf"), 0.0, -1.0))
    else:
        attribute.type = random.randrange(15)


def _drop_attribute(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if node.attribute:
        node.attribute.pop()


def _weights(model: onnx.ModelProto, random: Random) -> None:
    tensor = model.graph.initializer[random.randrange(len(model.graph.initializer))]
    change = random.randrange(4)
    if change == 0 and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(SIZES)
    elif change == 1:
        tensor.data_type = random.randrange(25)
    elif change == 2 and tensor.raw_data:
        tensor.raw_data = tensor.raw_data[: random.randrange(len(tensor.raw_data) + 1)]
    else:
        tensor.dims.append(random.choice(SIZES))


def _external(model: onnx.ModelProto, random: Random) -> None:
    tensors = [one for one in model.graph.initializer if one.external_data]
    if not tensors:
        return
    tensor = tensors[random.randrange(len(tensors))]
    entry = tensor.external_data[random.randrange(len(tensor.external_data))]
    values = (*map(str, SIZES), "", "x", "../outside", "/etc/passwd", "vision.onnx.data", "1e3")
    entry.value = random.choice(values)


def _version(model: onnx.ModelProto, random: Random) -> None:
    if random.random() < 0.5:
        model.ir_version = random.choice((0, 1, 3, 99, 2**40))
    else:
        model.opset_import.append(
            helper.make_opsetid(random.choice(("", "x")), random.choice(SIZES))
        )


def _promise(model: onnx.ModelProto, random: Random) -> None:
    values = random.choice((model.graph.input, model.graph.output))
    value = values[random.randrange(len(values))]
    change = random.randrange(4)
    if change == 0:
        value.type.tensor_type.elem_type = random.randrange(25)
    elif change == 1:
        value.name = _name(model, random)
    elif change == 2 and value.type.tensor_type.shape.dim:
        axes = value.type.tensor_type.shape.dim
        axes[random.randrange(len(axes))].dim_value = random.choice(SIZES)
    else:
        values.append(value)


def _remove(model: onnx.ModelProto, random: Random) -> None:
    del model.graph.node[random.randrange(len(model.graph.node))]


def _shuffle(model: onnx.ModelProto, random: Random) -> None:
    nodes = list(model.graph.node)
    random.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _nest(model: onnx.ModelProto, random: Random) -> None:
    """Graphs within graphs."""
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(random.choice((3, 60))):
        node = helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "outer", [], [])
        if inner.ByteSize() > 1 << 20:
            break
    model.graph.node.extend(inner.node)


def _function(model: onnx.ModelProto, random: Random) -> None:
    """A function that calls itself."""
    node = _node(model, random)
    function = model.functions.add(name=node.op_type, domain=node.domain)
    function.input.extend(node.input[:1])
    function.output.extend(node.output[:1])
    function.node.add().CopyFrom(node)
    function.opset_import.append(helper.make_opsetid(node.domain, 18))


def _sparse(model: onnx.ModelProto, random: Random) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[random.choice(SIZES)])
    sparse.values.CopyFrom(TensorProto(name="s", data_type=1, dims=[1], float_data=[1.0]))
    sparse.indices.CopyFrom(TensorProto(data_type=7, dims=[1], int64_data=[random.choice(SIZES)]))


_CHANGES = (
    _operator, _operator, _domain, _input, _input, _inputs, _output, _cycle, _attribute, _attribute,
    _attribute, _drop_attribute, _weights, _weights, _external, _version, _promise, _promise, _remove,
    _shuffle, _nest, _function, _sparse,
)  # fmt: skip
