"""The layers and tensors of a network that TensorRT's parser made, as Python iterates them."""

from collections.abc import Iterator
from typing import Any


def layers_of(network: Any) -> list[Any]:
    """All layers of a network."""
    return [network.get_layer(place) for place in range(network.num_layers)]


def inputs_of(layer: Any) -> Iterator[Any]:
    """The tensors that a layer or network reads; an optional input that is absent is left out."""
    tensors = (layer.get_input(place) for place in range(layer.num_inputs))
    return (tensor for tensor in tensors if tensor is not None)


def outputs_of(layer: Any) -> Iterator[Any]:
    """The tensors that a layer or network writes."""
    return (layer.get_output(place) for place in range(layer.num_outputs))
