"""What every rewriting of an ONNX graph shares: reading it, making nodes and constants, its bytes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from foveate.errors import needed

Node = Any
"""A NodeProto of onnx, which is imported when it is needed."""


class Rewriter:
    """An ONNX graph that is changed in memory; its weights stay in their file and are not read.

    Attributes:
        need: What needs onnx and how to install it, for the error where it is not installed.
        onnx: The module.
        graph: The graph.
        opset: The model's entry for the version of ONNX's own operators.
        constants: Constants by name, those of the graph and those added.
    """

    need: str

    def __init__(self, path: Path) -> None:
        """Read an ONNX file.

        Raises:
            MissingDependencyError: onnx is not installed.
        """
        with needed(self.need):
            import onnx
        self.onnx: Any = onnx
        self.model: Any = onnx.load(str(path), load_external_data=False)
        self.graph = self.model.graph
        (self.opset,) = (one for one in self.model.opset_import if one.domain in ("", "ai.onnx"))
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}

    def make(
        self, operator: str, inputs: Sequence[str | NDArray[Any]], output: str, **options: Any
    ) -> Node:
        """A new node, named after its output, as are the constants among its inputs."""
        names = [
            one if isinstance(one, str) else self.constant(f"{output}.{place}", one)
            for place, one in enumerate(inputs)
        ]
        return self.onnx.helper.make_node(
            operator, names, [output], name=f"{operator}.{output}", **options
        )

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant to the graph; its name."""
        self.constants[name] = self.onnx.numpy_helper.from_array(value, name)
        return name

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """Replace the graph's nodes and constants by `nodes` and `constants`."""
        for field, values in (("node", list(nodes)), ("initializer", self.constants.values())):
            self.graph.ClearField(field)
            getattr(self.graph, field).extend(values)

    def set_needed(self, nodes: Iterable[Node]) -> None:
        """Replace the graph's nodes by those of `nodes` that its outputs need, and drop unread constants."""
        needed = {value.name for value in self.graph.output}
        kept: list[Node] = []
        for node in reversed([*nodes]):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.constants = {name: one for name, one in self.constants.items() if name in needed}
        self.set_nodes(reversed(kept))

    def serialized(self) -> bytes:
        """The model's bytes, with the IR version that its opset needs."""
        least = self.onnx.helper.find_min_ir_version_for(
            list(self.model.opset_import), ignore_unknown=True
        )
        self.model.ir_version = max(self.model.ir_version, least)
        return bytes(self.model.SerializeToString())
