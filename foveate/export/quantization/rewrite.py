"""A float graph to one with QuantizeLinear and DequantizeLinear around its matrix products."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from foveate.bundle.manifest import Quantized
from foveate.export.quantization.linears import Linear
from foveate.export.quantization.numbers import quantize_weight, scale_of

OPSET: dict[Quantized, int] = {"int8": 19, "fp8": 19, "int4": 21}
"""Where QuantizeLinear takes scales of float16, where float8 came, and where int4 and blocks did."""
IR_VERSION = 10
ZERO: dict[Quantized, Any] = {"int8": np.int8(0), "fp8": ml_dtypes.float8_e4m3fn(0)}


def rewrite(
    model: ir.Model, linears: Sequence[Linear], precision: Quantized, ranges: Mapping[str, float]
) -> None:
    """Make every one of `linears` a MatMul of quantized numbers, in place.

    Args:
        model: The graph; its weights may lie in a file.
        linears: Its matrix products to quantize.
        precision: What to quantize to.
        ranges: For each activation by name the largest magnitude to represent; int4 takes none.
    """
    graph = model.graph
    weights: dict[tuple[str, int], ir.Value] = {}
    scales: dict[str, ir.Value] = {}
    zero = None if precision == "int4" else _constant(graph, "zero", np.array(ZERO[precision]))
    for linear in linears:
        # What is made in the body of a Scan is not seen outside; onnxruntime fuses int4 weights in no body.
        within = graph if precision == "int4" else linear.graph
        weight = str(linear.weight.name), id(within)
        if weight not in weights:
            weights[weight] = _dequantized(graph, linear, precision, within)
        activation = linear.activation
        if zero is not None:
            name = str(activation.name)
            if name not in scales:
                scale = scale_of(np.array(ranges[name]), precision, linear.matrix().dtype)
                scales[name] = _constant(graph, f"{name}.scale", scale)
            activation = _rounded(linear, scales[name], zero)
        _replace(linear, activation, weights[weight])
    for linear in linears:
        if not linear.weight.uses():
            graph.initializers.pop(str(linear.weight.name), None)
    model.opset_imports[""] = OPSET[precision]
    model.ir_version = max(model.ir_version, IR_VERSION)


def _dequantized(
    graph: ir.Graph, linear: Linear, precision: Quantized, within: ir.Graph
) -> ir.Value:
    """A linear's weight as codes in the graph, through a DequantizeLinear in the graph or a body: [K, N]."""
    name = str(linear.weight.name)
    weight = quantize_weight(linear.matrix(), precision)
    inputs = [
        _constant(graph, f"{name}.codes", weight.codes),
        _constant(graph, f"{name}.scales", weight.scales),
    ]
    if precision == "int8":
        # onnxruntime's rewriting for CPUs without VNNI makes a scalar of what is left out.
        inputs.append(_constant(graph, f"{name}.zeros", np.zeros(weight.scales.shape, np.int8)))
    attributes = {"axis": 0, "block_size": weight.block} if weight.block else {"axis": 1}
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}.dequantize")
    within.insert_before(linear.node if within is linear.graph else within[0], node)
    shape = ir.Shape(weight.codes.shape)
    return _described(node, f"{name}.dequantized", linear.weight, shape)


def _rounded(linear: Linear, scales: ir.Value, zero: ir.Value) -> ir.Value:
    """A linear's activation through a QuantizeLinear and a DequantizeLinear of its own.

    onnxruntime fuses no product whose pair is shared with another.
    """
    value, before = linear.activation, linear.node
    name = f"{before.name}.activation"
    down = ir.node("QuantizeLinear", [value, scales, zero], name=f"{name}.quantize")
    codes = _described(down, f"{name}.codes", zero, value.shape)
    up = ir.node("DequantizeLinear", [codes, scales, zero], name=f"{name}.dequantize")
    linear.graph.insert_before(before, [down, up])
    return _described(up, name, scales, value.shape)


def _described(node: ir.Node, name: str, like: ir.Value, shape: ir.Shape | None) -> ir.Value:
    """A node's output, named and with another value's type."""
    output = node.outputs[0]
    output.name, output.type, output.shape = name, like.type, shape
    return output


def _replace(linear: Linear, activation: ir.Value, weight: ir.Value) -> None:
    """Put a MatMul, and an Add where there is a bias, in a linear's place."""
    old = linear.node
    product = ir.node("MatMul", [activation, weight], name=f"{old.name}.matmul")
    result = product.outputs[0]
    nodes = [product]
    if linear.bias is not None:
        _described(product, f"{old.outputs[0].name}.product", linear.bias, old.outputs[0].shape)
        nodes.append(ir.node("Add", [result, linear.bias], name=f"{old.name}.bias"))
        result = nodes[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(linear.graph, old, [old], nodes, old.outputs, [result])


def _constant(graph: ir.Graph, name: str, values: NDArray[Any]) -> ir.Value:
    """An initializer."""
    tensor = ir.tensor(values, name=name)
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape(values.shape)
    value = ir.Value(name=name, type=kind, shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value
