"""A decoder graph whose cache has a fixed length and is written in place, made of the one where it grows.

What appends to the cache becomes a TensorScatter, TensorRT's cache update from version 10.15 on. Which
slots a token sees is spelled out in the graph: TensorRT would align causal attention to the wrong keys.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import ExportError
from foveate.export.tensorrt.model import read_model
from foveate.runtime.backends.trt.tensor_specs import STATIC_OPSET, WRITE_INDICES

if TYPE_CHECKING:
    from onnx import NodeProto

EMBEDS, MASK = "inputs_embeds", "attention_mask"
COUNTED = {EMBEDS: 1, "position_ids": 2}
"""Inputs, and their axis that is as long as the tokens taken in."""
CACHED = 2
"""The axis of keys and values that is as long as the cache."""
PROBED = 8
"""Up to how many tokens at once the mask is tried with."""


def static_graph(graph: Path, capacity: int) -> bytes:
    """The bytes of an ONNX decoder whose caches have room for `capacity` tokens.

    In place of attention_mask it takes write_indices int64 [batch]: how many tokens each cache holds, and
    so where the next are written. Weights stay where they are.

    Args:
        graph: A decoder graph that foveate exported, whose cache grows.
        capacity: Tokens of a whole sequence.

    Raises:
        MissingDependencyError: onnx is not installed.
        ExportError: The graph is not as expected, and might compute something else when rewritten.
    """
    onnx, model, version = read_model(
        graph,
        "a decoder with a static cache needs onnx: pip install onnx, or build with --decoder concat",
    )
    Rewriter(onnx, model, capacity).rewrite()
    version.version = max(version.version, STATIC_OPSET)
    least = onnx.helper.find_min_ir_version_for(list(model.opset_import))
    model.ir_version = max(model.ir_version, least)
    data: bytes = model.SerializeToString()
    return data


class Rewriter:
    """Rewrites one decoder in place."""

    def __init__(self, onnx: Any, model: Any, capacity: int) -> None:
        """Know what the graph's values are made by."""
        self.onnx, self.model, self.graph, self.capacity = onnx, model, model.graph, capacity
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.inputs = {value.name: value for value in self.graph.input}
        self.pasts = [name for name in self.inputs if name.startswith("past.")]

    def rewrite(self) -> None:
        """Do all of it; ExportError where the graph is not as expected."""
        if not self.pasts or not {MASK, *COUNTED} <= self.inputs.keys():
            raise refusal("it lacks an input of a decoder whose cache grows")
        mask = self.find_mask()
        lengths = self.find_lengths()
        nodes = list(self.mask_nodes(mask, self.probe(mask)))
        for node in self.graph.node:
            if not {mask, *lengths} & {*node.output}:
                nodes.append(self.scatter(node) if self.appends(node) else node)
        for name, rank in lengths.items():
            self.constant(name, np.full((1,) * rank, self.capacity))
        self.replace(nodes)
        self.check()

    def find_mask(self) -> str:
        """The one value that every layer adds to its scores; it is made of no token's content."""
        softmaxes = [node for node in self.graph.node if node.op_type == "Softmax"]
        masks = set()
        for node in softmaxes:
            maker = self.makers.get(node.input[0])
            added = maker.input if maker is not None and maker.op_type == "Add" else ()
            masks |= {name for name in added if EMBEDS not in self.sources(name)}
        if len(softmaxes) != len(self.pasts) // 2 or len(masks) != 1:
            raise refusal("its layers do not all add one mask to the scores of their attention")
        (mask,) = masks
        return str(mask)

    def probe(self, mask: str) -> NDArray[Any]:
        """Compute the mask for prompts and steps, and see that it is causal; what it gives the unseen.

        The new mask hides what this one does, so it must be no other: no window, no bias.
        """
        from onnx.reference import ReferenceEvaluator

        nodes = self.ancestors([mask])
        read = {name for node in nodes for name in node.input}
        constants = [tensor for name, tensor in self.constants.items() if name in read]
        if any(tensor.external_data for tensor in constants):
            raise refusal("its mask is made of weights")
        feeds = [value for name, value in self.inputs.items() if name in read]
        part = self.onnx.helper.make_graph(
            nodes, "mask", feeds, [self.onnx.helper.make_empty_tensor_value_info(mask)], constants
        )
        model = self.onnx.helper.make_model(part, opset_imports=self.model.opset_import)
        several = min(PROBED, self.capacity)
        lowest: NDArray[Any] | None = None
        try:
            evaluator: Any = ReferenceEvaluator(model)
            for count in (several, 1):
                for past in (0, self.capacity - count):
                    sizes = {"batch": 1, "sequence": count, "past": past, "total": past + count}
                    examples = {value.name: self.example(value, sizes) for value in feeds}
                    (found,) = evaluator.run(None, examples)
                    slots, rows = np.arange(past + count), np.arange(count)[:, None]
                    lowest = found.min() if lowest is None else lowest
                    wanted = np.where(slots <= past + rows, found.dtype.type(0), lowest)
                    if not np.array_equal(found, wanted[None, None]):
                        raise refusal("its mask is not the causal one")
        except ExportError:
            raise
        except Exception as error:
            raise refusal(f"its mask cannot be computed ({error})") from error
        if lowest is None or not lowest < -1e4:
            raise refusal("its mask hides nothing")
        return lowest

    def example(self, value: Any, sizes: dict[str, int]) -> NDArray[Any]:
        """Ones of an input's type and shape."""
        kind = value.type.tensor_type
        axes = [axis.dim_value or sizes[axis.dim_param] for axis in kind.shape.dim]
        return np.ones(axes, self.onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))

    def find_lengths(self) -> dict[str, int]:
        """Sums of what the cache holds and what is taken in, and their rank: the capacity from now on."""
        parts: dict[str, tuple[str, int]] = {}
        lengths = {}
        for node in self.graph.node:
            source = node.input[0] if node.input else ""
            if node.op_type == "Shape":
                axes = self.shape_axes(node)
                if source in self.pasts and axes == [CACHED]:
                    parts[node.output[0]] = "past", 1
                elif axes == [COUNTED.get(source)]:
                    parts[node.output[0]] = "taken in", 1
            elif node.op_type == "Squeeze" and source in parts:
                parts[node.output[0]] = parts[source][0], 0
            elif node.op_type == "Add" and all(name in parts for name in node.input):
                (one, rank), (other, same) = (parts[name] for name in node.input)
                if {one, other} == {"past", "taken in"} and rank == same:
                    lengths[node.output[0]] = rank
        return lengths

    def mask_nodes(self, mask: str, lowest: NDArray[Any]) -> "Iterator[NodeProto]":
        """Where each token sees the cache's slots: those up to the one that it is written to itself."""
        slots = self.constant("static.slots", np.arange(self.capacity))
        zero, one, axis = (
            self.constant(f"static.{name}", np.array(value))
            for name, value in (("zero", 0), ("one", 1), ("axis", [0]))
        )
        places = self.constant("static.places", np.array([1, 2, 3]))
        column = self.constant("static.column", np.array([1]))
        seen = self.constant("static.seen.value", lowest.dtype.type(0))
        unseen = self.constant("static.unseen.value", lowest)
        yield self.make(
            "Shape", [EMBEDS], "static.sizes", start=COUNTED[EMBEDS], end=COUNTED[EMBEDS] + 1
        )
        yield self.make("Squeeze", ["static.sizes", axis], "static.count")
        yield self.make("Range", [zero, "static.count", one], "static.tokens")
        yield self.make("Unsqueeze", ["static.tokens", column], "static.rows")
        yield self.make("Unsqueeze", [WRITE_INDICES, places], "static.first")
        yield self.make("Add", ["static.first", "static.rows"], "static.last")
        yield self.make("LessOrEqual", [slots, "static.last"], "static.seen")
        yield self.make("Where", ["static.seen", seen, unseen], mask)

    def appends(self, node: "NodeProto") -> bool:
        """Whether a node appends to the cache."""
        return node.op_type == "Concat" and node.input[0] in self.pasts

    def scatter(self, node: "NodeProto") -> "NodeProto":
        """What writes into the cache instead of appending to it."""
        past, *new = node.input
        axis = self.onnx.helper.get_node_attr_value(node, "axis")
        present = str(past).replace("past.", "present.")
        if len(new) != 1 or axis not in (CACHED, CACHED - 4) or list(node.output) != [present]:
            raise refusal(f"{node.name} is not what appends to {past}")
        inputs = [past, *new, WRITE_INDICES]
        return self.make("TensorScatter", inputs, present, axis=CACHED - 4, mode="linear")

    def replace(self, nodes: "Sequence[NodeProto]") -> None:
        """Give the graph new nodes, as far as they are needed, and the inputs and outputs that go with them."""
        self.makers = {name: node for node in nodes for name in node.output}
        needed = self.ancestors([value.name for value in self.graph.output], nodes)
        read = {name for node in needed for name in node.input}
        constants = [tensor for name, tensor in self.constants.items() if name in read]
        for field, values in (("node", needed), ("initializer", constants), ("value_info", [])):
            self.graph.ClearField(field)
            getattr(self.graph, field).extend(values)
        for value in self.graph.input:
            if value.name == MASK:
                value.CopyFrom(
                    self.onnx.helper.make_tensor_value_info(
                        WRITE_INDICES, self.onnx.TensorProto.INT64, ["batch"]
                    )
                )
        for value in (*self.graph.input, *self.graph.output):
            if value.name.startswith(("past.", "present.")):
                axis = value.type.tensor_type.shape.dim[CACHED]
                axis.Clear()
                axis.dim_value = self.capacity

    def check(self) -> None:
        """ExportError where the cache or the old mask is read by anything else than what was rewritten."""
        written = []
        for node in self.graph.node:
            if node.op_type == "TensorScatter":
                written.append(node.input[0])
            elif MASK in node.input:
                raise refusal(f"{node.name} reads the mask")
            elif set(self.pasts) & {*node.input} and (
                node.op_type != "Shape" or CACHED in self.shape_axes(node)
            ):
                raise refusal(f"{node.name} reads the cache")
        if sorted(written) != sorted(self.pasts):
            raise refusal("it does not append to each cache once")

    def ancestors(
        self, names: Sequence[str], nodes: "Sequence[NodeProto] | None" = None
    ) -> "list[NodeProto]":
        """The nodes that values are made by, in the graph's order."""
        todo, found = list(names), set()
        while todo:
            node = self.makers.get(todo.pop())
            if node is not None and node.output[0] not in found:
                found.add(node.output[0])
                todo += node.input
        return [one for one in nodes or self.graph.node if one.output[0] in found]

    def sources(self, name: str) -> set[str]:
        """The inputs whose content, and not only their size, a value depends on."""
        todo, seen = [name], set()
        while todo:
            name = todo.pop()
            node = self.makers.get(name)
            if name not in seen and (node is None or node.op_type != "Shape"):
                seen.add(name)
                todo += node.input if node is not None else ()
        return seen & self.inputs.keys()

    def shape_axes(self, node: "NodeProto") -> list[int]:
        """The axes whose sizes a Shape gives."""
        options = {one.name: one.i for one in node.attribute}
        value = self.inputs.get(node.input[0])
        rank = len(value.type.tensor_type.shape.dim) if value is not None else 0
        return list(range(rank))[options.get("start", 0) : options.get("end", rank)]

    def make(self, operator: str, inputs: list[str], output: str, **options: Any) -> "NodeProto":
        """A node, named after what it gives."""
        node: NodeProto = self.onnx.helper.make_node(
            operator, inputs, [output], name=f"{operator}.{output}", **options
        )
        return node

    def constant(self, name: str, value: Any) -> str:
        """Add a constant to the graph."""
        self.constants[name] = self.onnx.numpy_helper.from_array(np.asarray(value), name)
        return name


def refusal(why: str) -> ExportError:
    """What to say of a decoder that may not be rewritten."""
    return ExportError(
        f"decoder: the graph cannot be given a static cache: {why}. Build with --decoder concat, or "
        "export the checkpoint again with this version of foveate."
    )
