"""The matrix products of a graph that have a constant weight: what quantization works on."""

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

HEAD = "lm_head"
PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0}
"""Attributes of a Gemm that is a matrix product and a sum, and nothing else."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One matrix product with a constant weight.

    Attributes:
        name: The node's; that of the projection to logits is `HEAD`.
        node: A MatMul or a Gemm.
        activation: What is multiplied, [..., K].
        weight: The constant, [K, N], or [N, K] where it is `transposed`.
        bias: What is added, [N]; None for nothing.
        transposed: Whether the weight is.
    """

    name: str
    node: ir.Node
    activation: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    transposed: bool

    @property
    def graph(self) -> ir.Graph:
        """The graph, or the body of a Scan, that the node is in."""
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        return graph

    def matrix(self) -> NDArray[Any]:
        """The weight as [K, N], of its own type."""
        assert self.weight.const_value is not None
        values = self.weight.const_value.numpy()
        return values.T if self.transposed else values


def find_linears(graph: ir.Graph) -> list[Linear]:
    """Each MatMul of a graph by a constant matrix, and each Gemm that is one with a bias, in its order.

    Those within the bodies of its Scans are among them.
    """
    return [linear for node in graph.all_nodes() if (linear := _as_linear(node)) is not None]


def _as_linear(node: ir.Node) -> Linear | None:
    """A node as the matrix product that it is; None for another."""
    if node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    activation, weight, *rest = node.inputs
    if activation is None or weight is None or weight.const_value is None:
        return None
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    odd = any(given.get(name, plain) != plain for name, plain in PLAIN.items())
    if odd or len(weight.const_value.shape) != 2 or activation.const_value is not None:
        return None
    name = HEAD if _gives_logits(node.outputs[0]) else str(node.name)
    bias = rest[0] if rest else None
    return Linear(name, node, activation, weight, bias, bool(given.get("transB", 0)))


def _gives_logits(value: ir.Value) -> bool:
    """Whether a value is the output `logits`, but for its type."""
    if value.name == "logits":
        return True
    return any(
        use.node.op_type == "Cast" and _gives_logits(use.node.outputs[0]) for use in value.uses()
    )
