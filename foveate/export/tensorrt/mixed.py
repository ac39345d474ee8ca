"""Mixed precision for TensorRT before version 10: which layers compute in float16 and which in float32."""

from typing import Any

from foveate.export.tensorrt.network import inputs_of, layers_of, outputs_of

FLOAT32_KINDS = ("REDUCE", "SOFTMAX", "UNARY", "NORMALIZATION")
"""Kinds of layers that overflow or lose precision in float16; so do layers that read a reduction."""
FLOAT16_KINDS = ("MATRIX_MULTIPLY", "CONVOLUTION")
"""Kinds of layers that hold nearly all weights and do nearly all work."""


def set_precisions(trt: Any, network: Any) -> tuple[int, int]:
    """Set layers to float16 or float32, and leave the others to TensorRT.

    Without this, TensorRT computes matrix products in float32 wherever it finds that faster. Norms,
    softmax and rotary angles are float32 in foveate's own fp16 graphs, too.

    Returns:
        How many layers were set to float16, and how many to float32.
    """
    layers = layers_of(network)
    makers = {tensor.name: layer for layer in layers for tensor in outputs_of(layer)}

    def sources(layer: Any) -> list[Any]:
        """The layers whose outputs a layer reads."""
        return [makers[tensor.name] for tensor in inputs_of(layer) if tensor.name in makers]

    exact = {
        layer.name
        for layer in layers
        if layer.type.name in FLOAT32_KINDS
        or _operation(trt, layer) == trt.ElementWiseOperation.POW
        or (layer.type.name == "ELEMENTWISE" and "REDUCE" in {s.type.name for s in sources(layer)})
    }
    rotations = (trt.UnaryOperation.SIN, trt.UnaryOperation.COS)
    todo = [layer for layer in layers if _operation(trt, layer) in rotations]
    while todo:
        layer = todo.pop()
        exact.add(layer.name)
        todo += [one for one in sources(layer) if one.name not in exact]
    # Logarithms are of small sums and quotients, which float16 would make coarse or 0.
    todo = [layer for layer in layers if _operation(trt, layer) == trt.UnaryOperation.LOG]
    while todo:
        layer = todo.pop()
        exact.add(layer.name)
        todo += [
            one
            for one in sources(layer)
            if one.type.name == "ELEMENTWISE" and one.name not in exact
        ]
    halves = kept = 0
    for layer in layers:
        if any(tensor.dtype != trt.float32 for tensor in outputs_of(layer)):
            continue
        if layer.name in exact:
            layer.precision = trt.float32
            for place in range(layer.num_outputs):
                layer.set_output_type(place, trt.float32)
            kept += 1
        elif layer.type.name in FLOAT16_KINDS:
            layer.precision = trt.float16
            halves += 1
    return halves, kept


def _operation(trt: Any, layer: Any) -> Any:
    """What a layer computes of each element; None where it does something else."""
    kinds = {"UNARY": trt.IUnaryLayer, "ELEMENTWISE": trt.IElementWiseLayer}
    if layer.type.name not in kinds:
        return None
    layer.__class__ = kinds[layer.type.name]
    return layer.op
