"""A graph in the words of old parsers: TensorRT before version 10 misreads newer ones without a warning.

Its parser ignores the axes that ReduceMean takes as an input since opset 18 and reduces over all of them,
and ignores where Shape starts and ends since opset 15. Layer normalisation is spelled out, too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.errors import ExportError
from foveate.export.tensorrt.model import read_model

if TYPE_CHECKING:
    from onnx import NodeProto

OPSET = 17
EARLY = "ReduceSum"
"""The reduction that took its axes as an input before opset 18, which the parser knows."""


def conservative_graph(graph: Path) -> bytes:
    """The bytes of an ONNX graph that computes the same with opset 17 and less; its weights stay where they are.

    Raises:
        MissingDependencyError: onnx is not installed.
        ExportError: A node that cannot be rewritten.
    """
    onnx, model, version = read_model(
        graph, "building with TensorRT before version 10 needs onnx: pip install onnx"
    )
    rewriter = Rewriter(onnx, model.graph, graph.parent)
    nodes = [new for node in model.graph.node for new in rewriter.rewrite(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(rewriter.added)
    version.version = min(version.version, OPSET)
    data: bytes = model.SerializeToString()
    return data


class Rewriter:
    """Rewrites the nodes of one graph."""

    def __init__(self, onnx: Any, graph: Any, folder: Path) -> None:
        """Know the graph's constants; weights in `folder` are read only where a node needs them."""
        self.onnx = onnx
        self.folder = folder
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.added: list[Any] = []

    def rewrite(self, node: "NodeProto") -> "Iterator[NodeProto]":
        """The nodes that stand for a node: often itself."""
        options = {one.name: self.onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Shape" and options:
            yield from self.shape(node, options)
        elif node.op_type.startswith("Reduce") and node.op_type != EARLY:
            yield self.reduction(node, options)
        elif node.op_type == "LayerNormalization":
            yield from self.layer_norm(node, options)
        elif node.op_type == "Split" and "num_outputs" in options and len(node.input) < 2:
            raise ExportError(self.refusal(node, "its parts are not given"))
        else:
            yield node

    def shape(self, node: "NodeProto", options: dict[str, Any]) -> "Iterator[NodeProto]":
        """All sizes, and then those from `start` to `end`."""
        start, end = options.get("start", 0), options.get("end", np.iinfo(np.int64).max)
        whole = f"{node.output[0]}.whole"
        yield self.make("Shape", [node.input[0]], whole)
        bounds = [
            self.constant(f"{node.output[0]}.{name}", np.array([value], dtype=np.int64))
            for name, value in (("start", start), ("end", end), ("axis", 0))
        ]
        yield self.make("Slice", [whole, *bounds], node.output[0])

    def reduction(self, node: "NodeProto", options: dict[str, Any]) -> "NodeProto":
        """The same with its axes as an attribute."""
        kept = {"keepdims": options.get("keepdims", 1)}
        if "axes" in options:
            return node
        axes = self.value(node, node.input[1]) if len(node.input) > 1 and node.input[1] else None
        if axes is None or not axes.size:
            if options.get("noop_with_empty_axes"):
                return self.make("Identity", [node.input[0]], node.output[0])
            return self.make(node.op_type, [node.input[0]], node.output[0], **kept)
        return self.make(node.op_type, [node.input[0]], node.output[0], axes=axes.tolist(), **kept)

    def layer_norm(self, node: "NodeProto", options: dict[str, Any]) -> "Iterator[NodeProto]":
        """Normalise over the last axis, spelled out."""
        if options.get("axis", -1) != -1 or len(node.output) > 1:
            raise ExportError(self.refusal(node, "it normalises over more than the last axis"))
        stem, source = node.output[0], node.input[0]
        tensor = self.constants[node.input[1]]
        dtype = self.onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        epsilon = self.constant(
            f"{stem}.epsilon", np.array(options.get("epsilon", 1e-5), dtype=dtype)
        )
        two = self.constant(f"{stem}.two", np.array(2, dtype=dtype))
        yield self.make("ReduceMean", [source], f"{stem}.mean", axes=[-1], keepdims=1)
        yield self.make("Sub", [source, f"{stem}.mean"], f"{stem}.centred")
        yield self.make("Pow", [f"{stem}.centred", two], f"{stem}.squared")
        yield self.make(
            "ReduceMean", [f"{stem}.squared"], f"{stem}.variance", axes=[-1], keepdims=1
        )
        yield self.make("Add", [f"{stem}.variance", epsilon], f"{stem}.padded")
        yield self.make("Sqrt", [f"{stem}.padded"], f"{stem}.deviation")
        yield self.make("Div", [f"{stem}.centred", f"{stem}.deviation"], f"{stem}.normal")
        has_bias = len(node.input) > 2 and bool(node.input[2])
        scaled = f"{stem}.scaled" if has_bias else stem
        yield self.make("Mul", [f"{stem}.normal", node.input[1]], scaled)
        if has_bias:
            yield self.make("Add", [scaled, node.input[2]], stem)

    def make(self, operator: str, inputs: list[str], output: str, **options: Any) -> "NodeProto":
        """A node, named after what it gives."""
        node: NodeProto = self.onnx.helper.make_node(
            operator, inputs, [output], name=f"{operator}.{output}", **options
        )
        return node

    def constant(self, name: str, value: Any) -> str:
        """Add a constant to the graph."""
        self.added.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def value(self, node: "NodeProto", name: str) -> Any:
        """What a constant of the graph holds."""
        if name not in self.constants:
            raise ExportError(self.refusal(node, f"its input {name} is computed"))
        return self.onnx.numpy_helper.to_array(self.constants[name], base_dir=str(self.folder))

    def refusal(self, node: "NodeProto", why: str) -> str:
        """What to say of a node that old parsers would misread."""
        return (
            f"TensorRT before version 10 would misread the node {node.name} ({node.op_type}): {why}. "
            "Export the checkpoint again with this version of foveate, or install TensorRT 10."
        )
