"""Half precision for TensorRT before version 10, which chooses types itself: what must stay exact."""

from collections.abc import Iterator
from typing import Any

EXACT = ("REDUCE", "SOFTMAX", "UNARY", "NORMALIZATION")
"""Kinds of layers that overflow or lose positions in half precision; what reads a sum is kept, too."""
PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")
"""Kinds of layers that hold nearly all weights and work, and are what half precision is asked for."""


def set_precisions(trt: Any, network: Any) -> tuple[int, int]:
    """Hold products to float16, and to float32 what half precision would spoil; how many of each.

    Left to itself, TensorRT computes products in float32 wherever it thinks that faster. Norms, softmax
    and rotary angles are exact in foveate's own fp16 graphs, too. All else TensorRT may choose.
    """
    layers = [network.get_layer(place) for place in range(network.num_layers)]
    makers = {tensor.name: layer for layer in layers for tensor in _outputs(layer)}
    exact = {
        layer.name: layer for layer in layers if layer.type.name in EXACT or _power(trt, layer)
    }
    sums = {name for name, layer in exact.items() if layer.type.name == "REDUCE"}
    for layer in layers:
        sources = (makers.get(tensor.name) for tensor in _inputs(layer))
        if layer.type.name == "ELEMENTWISE" and any(one and one.name in sums for one in sources):
            exact[layer.name] = layer
    todo = [layer for layer in layers if layer.type.name == "UNARY" and _turns(trt, layer)]
    while todo:
        layer = todo.pop()
        exact[layer.name] = layer
        sources = (makers.get(tensor.name) for tensor in _inputs(layer))
        todo += [one for one in sources if one is not None and one.name not in exact]
    halves = kept = 0
    for layer in layers:
        if any(tensor.dtype != trt.float32 for tensor in _outputs(layer)):
            continue
        if layer.name in exact:
            layer.precision = trt.float32
            for place in range(layer.num_outputs):
                layer.set_output_type(place, trt.float32)
            kept += 1
        elif layer.type.name in PRODUCTS:
            layer.precision = trt.float16
            halves += 1
    return halves, kept


def _turns(trt: Any, layer: Any) -> bool:
    """Whether a unary layer is a sine or cosine."""
    layer.__class__ = trt.IUnaryLayer
    return layer.op in (trt.UnaryOperation.SIN, trt.UnaryOperation.COS)


def _power(trt: Any, layer: Any) -> bool:
    """Whether a layer raises to a power."""
    if layer.type.name != "ELEMENTWISE":
        return False
    layer.__class__ = trt.IElementWiseLayer
    return bool(layer.op == trt.ElementWiseOperation.POW)


def _inputs(layer: Any) -> Iterator[Any]:
    """The tensors that a layer takes."""
    for place in range(layer.num_inputs):
        tensor = layer.get_input(place)
        if tensor is not None:
            yield tensor


def _outputs(layer: Any) -> Iterator[Any]:
    """The tensors that a layer gives."""
    for place in range(layer.num_outputs):
        yield layer.get_output(place)
