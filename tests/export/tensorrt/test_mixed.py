"""Which layers of real parsed networks are set to float16 and which to float32."""

from pathlib import Path
from typing import Any

import pytest

from foveate.bundle.reader import Bundle
from foveate.export.tensorrt.mixed import set_precisions
from foveate.export.tensorrt.opset17 import to_opset17

trt = pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'foveate[rtx]'"
)


class Layer:
    """A layer that keeps the types set on it; TensorRT for RTX has no such setting."""

    def __init__(self, layer: Any) -> None:
        self.__dict__.update(layer=layer, precision=None, outputs={})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":
            self.layer.__class__ = value
        else:
            self.__dict__[name] = value

    def set_output_type(self, place: int, kind: Any) -> None:
        self.outputs[place] = kind


class Network:
    """A network of such layers."""

    def __init__(self, network: Any) -> None:
        self.num_layers = network.num_layers
        self.layers = [Layer(network.get_layer(place)) for place in range(self.num_layers)]

    def get_layer(self, place: int) -> Layer:
        return self.layers[place]


def parsed_network(graph: Path) -> Network:
    """A bundle's graph, as the oldest TensorRT gets it."""
    logger = trt.Logger(trt.Logger.ERROR)
    parsed = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(parsed, logger)
    assert parser.parse(to_opset17(graph), str(graph))
    return Network(parsed)


@pytest.mark.parametrize("role", ["vision", "compressor", "decoder"])
def test_products_are_float16_and_exact_layers_are_not(tiny_bundle: Bundle, role: str) -> None:
    network = parsed_network(tiny_bundle.file(role))
    halves, kept = set_precisions(trt, network)
    products = [layer for layer in network.layers if layer.type.name == "MATRIX_MULTIPLY"]
    half = [layer for layer in network.layers if layer.precision == trt.float16]
    whole = [layer for layer in network.layers if layer.precision == trt.float32]
    assert (halves, kept) == (len(half), len(whole))
    assert {layer.type.name for layer in half} == {"MATRIX_MULTIPLY"}
    for layer in network.layers:
        if layer.type.name in ("SOFTMAX", "REDUCE") and layer.get_output(0).dtype == trt.float32:
            assert layer.precision == trt.float32
            assert layer.outputs == {0: trt.float32}
    # Patches, two layers of six products and the merger's two; queries, keys, scores, and words summed up,
    # and eight that count tokens to find the kept ones; two layers of nine and the head.
    assert len(half) == len(products) == {"vision": 15, "compressor": 12, "decoder": 19}[role]
    unary = [layer for layer in network.layers if layer.type.name == "UNARY"]
    assert sum(layer.precision == trt.float32 for layer in unary) >= 2


def test_what_logarithms_are_of_is_exact(tiny_bundle: Bundle) -> None:
    """Words are weighed by logarithms of quotients: these, and the sums that they are of, are float32."""
    network = parsed_network(tiny_bundle.file("compressor"))
    set_precisions(trt, network)
    makers = {
        layer.get_output(place).name: layer
        for layer in network.layers
        for place in range(layer.num_outputs)
    }
    logs = [layer for layer in network.layers if "log" in layer.name and layer.type.name == "UNARY"]
    assert logs
    for layer in logs:
        source = makers[layer.get_input(0).name]
        assert (layer.precision, source.precision) == (trt.float32, trt.float32)
