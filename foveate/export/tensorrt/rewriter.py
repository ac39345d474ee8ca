"""What every rewriting of an ONNX graph shares: reading it, making nodes and constants, its bytes."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.errors import MissingDependencyError

if TYPE_CHECKING:
    from onnx import NodeProto


class Rewriter:
    """An ONNX graph that is changed in memory; its weights stay in their file and are not read.

    Attributes:
        onnx: The module.
        graph: The graph.
        opset: The model's entry for the version of ONNX's own operators.
        constants: Constants by name, those of the graph and those added.
    """

    def __init__(self, path: Path, need: str) -> None:
        """Read an ONNX file.

        Args:
            path: The file.
            need: What needs onnx and how to install it, for the error.

        Raises:
            MissingDependencyError: onnx is not installed.
        """
        try:
            import onnx
        except ImportError as error:
            raise MissingDependencyError(need) from error
        self.onnx: Any = onnx
        self.model: Any = onnx.load(str(path), load_external_data=False)
        self.graph = self.model.graph
        (self.opset,) = (one for one in self.model.opset_import if one.domain in ("", "ai.onnx"))
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}

    def make(self, operator: str, inputs: list[str], output: str, **options: Any) -> "NodeProto":
        """A new node, named after its output."""
        node: NodeProto = self.onnx.helper.make_node(
            operator, inputs, [output], name=f"{operator}.{output}", **options
        )
        return node

    def constant(self, name: str, value: Any) -> str:
        """Add a constant to the graph; its name."""
        self.constants[name] = self.onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def set_nodes(self, nodes: "Iterable[NodeProto]") -> None:
        """Replace the graph's nodes and constants by `nodes` and `constants`."""
        for field, values in (("node", list(nodes)), ("initializer", self.constants.values())):
            self.graph.ClearField(field)
            getattr(self.graph, field).extend(values)

    def serialized(self) -> bytes:
        """The model's bytes, with the IR version that its opset needs."""
        least = self.onnx.helper.find_min_ir_version_for(
            list(self.model.opset_import), ignore_unknown=True
        )
        self.model.ir_version = max(self.model.ir_version, least)
        data: bytes = self.model.SerializeToString()
        return data
