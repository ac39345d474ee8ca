"""What a TensorRT engine takes and gives, and whether that is what the manifest promises."""

from collections.abc import Sequence

from foveate.bundle.manifest import EngineVariant, GraphSpec, TensorSpec
from foveate.runtime.backends.trt.ranges import largest

DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32",
    "INT8": "int8", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""TensorRT's names of types and the manifest's."""

STATIC_OPSET = 24
"""The version of ONNX that brought TensorScatter, which writes into a cache."""
WRITE_INDICES = "write_indices"
"""The input of a static decoder that says how many tokens each cache holds, int64 [batch]."""


def engine_spec(spec: GraphSpec, variant: EngineVariant) -> GraphSpec:
    """What an engine takes and gives: its graph's tensors, unless it is a static decoder."""
    if variant.decoder != "static":
        return spec
    return static_spec(spec, largest(variant, "past.0.key", 2))


def static_spec(spec: GraphSpec, capacity: int) -> GraphSpec:
    """A decoder's tensors where its caches have a fixed length and are written in place.

    Args:
        spec: The decoder whose caches [batch, kv_heads, past, head_dim] grow, and that takes a mask.
        capacity: The fixed length.
    """

    def static(tensor: TensorSpec) -> TensorSpec:
        """One tensor; the mask gives way to where the cache is written."""
        if tensor.name == "attention_mask":
            return TensorSpec(name=WRITE_INDICES, dtype="int64", shape=["batch"])
        if not tensor.name.startswith(("past.", "present.")):
            return tensor
        batch, heads, _, width = tensor.shape
        shape = [batch, heads, capacity, width]
        return TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=shape)

    return GraphSpec(
        opset=max(spec.opset, STATIC_OPSET),
        inputs=[static(tensor) for tensor in spec.inputs],
        outputs=[static(tensor) for tensor in spec.outputs],
    )


def agrees(
    promise: TensorSpec,
    dtype: str,
    shape: Sequence[int],
    *,
    only: Sequence[int | None] | None,
    narrow: bool,
) -> bool:
    """Whether a tensor of TensorRT's is what the manifest promises.

    Args:
        promise: What the manifest says.
        dtype: TensorRT's type, in the manifest's words.
        shape: TensorRT's shape, -1 where it is free.
        only: For each axis of an input the one size that the engine's profiles take, if it is one:
            TensorRT may call it fixed. None for an output, whose free sizes it may know to be fixed.
        narrow: Whether this TensorRT has no 64-bit integers, so that 32 bits will do.
    """
    right = {promise.dtype, "int32"} if narrow and promise.dtype == "int64" else {promise.dtype}
    same = len(shape) == len(promise.shape) and all(
        size in (-1, axis) if isinstance(axis, int) else only is None or size in (-1, only[place])
        for place, (size, axis) in enumerate(zip(shape, promise.shape, strict=True))
    )
    return dtype in right and same
