"""Compares the network that TensorRT's parser made of a graph with the manifest."""

from collections.abc import Iterable, Sequence
from typing import Any

from foveate.bundle.manifest import GraphSpec, TensorSpec
from foveate.errors import ExportError
from foveate.export.tensorrt.network import inputs_of, layers_of, outputs_of
from foveate.runtime.backends.trt.tensor_specs import DTYPES, WRITE_INDICES, agrees

AGAIN = (
    "Export the checkpoint again with this version of foveate, and report it if that does not help."
)


def check_network(trt: Any, network: Any, role: str, spec: GraphSpec) -> None:
    """Refuse a parsed network that would not compute what its graph does.

    Args:
        trt: The library.
        network: The parsed network.
        role: The graph's role, for messages.
        spec: The graph's inputs and outputs in the manifest.

    Raises:
        ExportError: It names the layer or tensor, and the fix.
    """
    layers = layers_of(network)
    narrow = "INT64" not in trt.DataType.__members__
    _check_tensors(role, "input", spec.inputs, inputs_of(network), narrow)
    _check_tensors(role, "output", spec.outputs, outputs_of(network), narrow)
    used = {tensor.name for layer in layers for tensor in inputs_of(layer)}
    for tensor in spec.inputs:
        if tensor.name not in used:
            raise ExportError(f"{role}: TensorRT ignores the input {tensor.name!r}. {AGAIN}")
    for layer in layers:
        if layer.type == getattr(trt.LayerType, "ATTENTION_INPUT", None):
            layer.__class__ = trt.IAttentionInputLayer
            if layer.attention.causal:
                raise ExportError(
                    f"{role}: the layer {layer.name} is causal attention, which TensorRT aligns to "
                    "the wrong keys once there is a cache. Export with an explicit mask, as foveate "
                    f"does: {AGAIN}"
                )


def check_cache(trt: Any, network: Any, role: str, spec: GraphSpec) -> None:
    """Refuse a static decoder whose caches TensorRT would not write in place.

    Raises:
        ExportError: A cache without a cache update, or with another than the graph's.
    """
    kind = getattr(trt.LayerType, "KV_CACHE_UPDATE", None)
    layers = layers_of(network)
    updates = [layer for layer in layers if kind is not None and layer.type == kind]
    makers = {layer.get_output(0).name: layer for layer in layers if layer.num_outputs}
    found = {}
    for layer in updates:
        place = layer.get_input(2).name
        while place in makers and makers[place].type == trt.LayerType.CAST:
            place = makers[place].get_input(0).name
        found[layer.get_input(0).name] = layer.get_output(0).name, place
    wanted = {
        tensor.name: (tensor.name.replace("past.", "present."), WRITE_INDICES)
        for tensor in spec.inputs
        if tensor.name.startswith("past.")
    }
    if len(updates) != len(wanted) or found != wanted:
        lacking = [name for name, update in wanted.items() if found.get(name) != update]
        raise ExportError(
            f"{role}: TensorRT makes {len(updates)} cache updates of {len(wanted)}, and not that of "
            f"{', '.join(lacking[:3]) or 'the graph'}. Build with --decoder concat, or install a "
            "later library."
        )


def _check_tensors(
    role: str, kind: str, promised: Sequence[TensorSpec], found: Iterable[Any], narrow: bool
) -> None:
    """Refuse other names, types or shapes; `narrow`: 32-bit integers may stand for 64-bit ones."""
    there = {tensor.name: tensor for tensor in found}
    wanted = {tensor.name: tensor for tensor in promised}
    for name in sorted(there.keys() ^ wanted.keys()):
        lost = "lost" if name in wanted else "made up"
        raise ExportError(f"{role}: TensorRT {lost} the {kind} {name!r}. {AGAIN}")
    for name, promise in wanted.items():
        tensor = there[name]
        dtype = DTYPES.get(tensor.dtype.name, tensor.dtype.name)
        shape = list(tensor.shape)
        only: list[int | None] | None = None if kind == "output" else [None] * len(shape)
        if not agrees(promise, dtype, shape, only=only, narrow=narrow):
            raise ExportError(
                f"{role}: the {kind} {name!r} is {promise.dtype} {promise.shape} in the manifest and "
                f"{dtype} {shape} to TensorRT. {AGAIN}"
            )
