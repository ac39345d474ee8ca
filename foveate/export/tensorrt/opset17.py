"""Rewrites a graph to opset 17, for TensorRT before version 10.

The parser of those versions misreads newer operators without a warning: it ignores the axes that
ReduceMean takes as an input since opset 18 and reduces over all of them, and it ignores the start and end
of Shape, which came with opset 15. LayerNormalization becomes the operators that it consists of, and
attention in blocks and top-k are rewritten as for later versions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from foveate.errors import ExportError
from foveate.export.tensorrt.any_size import lift_limits
from foveate.export.tensorrt.rewriter import Node, Rewriter
from foveate.export.tensorrt.topk import MOST

OPSET = 17
AXES_INPUT = "ReduceSum"
"""The one reduction that took its axes as an input before opset 18; the parser reads it right."""


def to_opset17(graph: Path, most: int = MOST) -> bytes:
    """The bytes of an ONNX graph that computes the same with opset 17; its weights stay in their file.

    Args:
        graph: The file.
        most: The most tokens of a prompt that the graph will be run with.

    Raises:
        MissingDependencyError: onnx is not installed.
        ExportError: A node that cannot be rewritten.
    """
    rewriter = Opset17(graph)
    lift_limits(rewriter, most)
    rewriter.set_nodes(new for node in rewriter.graph.node for new in rewriter.rewrite(node))
    rewriter.opset.version = min(rewriter.opset.version, OPSET)
    return rewriter.serialized()


class Opset17(Rewriter):
    """Rewrites the nodes of one graph."""

    need = "building with TensorRT before version 10 needs onnx: pip install onnx"

    def __init__(self, path: Path) -> None:
        """Read a graph; a weight is read later, where a node needs its value."""
        super().__init__(path)
        self.folder = str(path.parent)

    def rewrite(self, node: Node) -> Iterator[Node]:
        """The nodes that take a node's place: often the node itself."""
        options = {one.name: self.onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Shape" and options:
            yield from self.shape(node, options)
        elif node.op_type.startswith("Reduce") and node.op_type != AXES_INPUT:
            yield self.reduction(node, options)
        elif node.op_type == "LayerNormalization":
            yield from self.layer_norm(node, options)
        elif node.op_type == "Split" and "num_outputs" in options and len(node.input) < 2:
            raise refusal(node, "the sizes of its parts are not given")
        else:
            yield node

    def shape(self, node: Node, options: dict[str, Any]) -> Iterator[Node]:
        """All sizes, and a slice of them from `start` to `end`."""
        output, last = node.output[0], np.iinfo(np.int64).max
        bounds = (options.get("start", 0), options.get("end", last), 0)
        yield self.make("Shape", [node.input[0]], f"{output}.whole")
        sliced = [np.array([bound], dtype=np.int64) for bound in bounds]
        yield self.make("Slice", [f"{output}.whole", *sliced], output)

    def reduction(self, node: Node, options: dict[str, Any]) -> Node:
        """The same reduction with its axes as an attribute."""
        if "axes" in options:
            return node
        source, output = node.input[0], node.output[0]
        kept = {"keepdims": options.get("keepdims", 1)}
        axes = self.value(node, node.input[1]) if len(node.input) > 1 and node.input[1] else None
        if axes is not None and axes.size:
            kept["axes"] = axes.tolist()
        elif options.get("noop_with_empty_axes"):
            return self.make("Identity", [source], output)
        return self.make(node.op_type, [source], output, **kept)

    def layer_norm(self, node: Node, options: dict[str, Any]) -> Iterator[Node]:
        """The operators that normalise over the last axis."""
        if options.get("axis", -1) != -1 or len(node.output) > 1:
            raise refusal(node, "it normalises over more than the last axis")
        output, source, scale = node.output[0], node.input[0], node.input[1]
        dtype = self.onnx.helper.tensor_dtype_to_np_dtype(self.constants[scale].data_type)

        def at(name: str) -> str:
            """The name of a value in between."""
            return f"{output}.{name}"

        epsilon, two = (np.array(one, dtype) for one in (options.get("epsilon", 1e-5), 2))
        yield self.make("ReduceMean", [source], at("mean"), axes=[-1], keepdims=1)
        yield self.make("Sub", [source, at("mean")], at("centred"))
        yield self.make("Pow", [at("centred"), two], at("squared"))
        yield self.make("ReduceMean", [at("squared")], at("variance"), axes=[-1], keepdims=1)
        yield self.make("Add", [at("variance"), epsilon], at("stable"))
        yield self.make("Sqrt", [at("stable")], at("deviation"))
        yield self.make("Div", [at("centred"), at("deviation")], at("normal"))
        biased = len(node.input) > 2 and bool(node.input[2])
        scaled = at("scaled") if biased else output
        yield self.make("Mul", [at("normal"), scale], scaled)
        if biased:
            yield self.make("Add", [scaled, node.input[2]], output)

    def value(self, node: Node, name: str) -> Any:
        """The value of a constant that a node reads."""
        if name not in self.constants:
            raise refusal(node, f"its input {name} is computed")
        return self.onnx.numpy_helper.to_array(self.constants[name], base_dir=self.folder)


def refusal(node: Node, why: str) -> ExportError:
    """The error for a node that TensorRT before version 10 would misread."""
    return ExportError(
        f"TensorRT before version 10 would misread the node {node.name} ({node.op_type}): {why}. "
        "Export the checkpoint again with this version of foveate, or install TensorRT 10."
    )
