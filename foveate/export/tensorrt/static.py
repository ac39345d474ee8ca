"""Rewrites a decoder graph whose KV cache grows to one whose cache has a fixed length.

A Concat onto the cache becomes a TensorScatter, which TensorRT runs in place from version 10.15 on. The
causal mask is spelled out in the graph: TensorRT would align causal attention to the wrong keys.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import ExportError
from foveate.export.tensorrt.rewriter import Node, Rewriter
from foveate.runtime.backends.trt.tensor_specs import STATIC_OPSET, WRITE_INDICES

EMBEDS, MASK = "inputs_embeds", "attention_mask"
SEQUENCE_AXES = {EMBEDS: 1, "position_ids": 2}
"""Inputs, and their axis that counts the tokens of one call."""
CACHE_AXIS = 2
"""The axis of keys and values that counts the tokens of the cache."""
CHECKED_TOKENS = 8
"""The most tokens of a call that the mask is computed for."""


def static_graph(graph: Path, capacity: int) -> bytes:
    """The bytes of an ONNX decoder whose caches have room for `capacity` tokens.

    In place of attention_mask it takes write_indices int64 [batch]: how many tokens each cache holds, which
    is where the next are written. Weights stay in their file.

    Args:
        graph: A decoder graph that foveate exported, whose cache grows.
        capacity: Tokens of a whole sequence.

    Raises:
        MissingDependencyError: onnx is not installed.
        ExportError: The graph is not as expected, and might compute something else when rewritten.
    """
    rewriter = StaticCache(graph, capacity)
    rewriter.rewrite()
    rewriter.opset.version = max(rewriter.opset.version, STATIC_OPSET)
    return rewriter.serialized()


class StaticCache(Rewriter):
    """Rewrites one decoder."""

    need = (
        "a decoder with a static cache needs onnx: pip install onnx, or build with --decoder concat"
    )

    def __init__(self, path: Path, capacity: int) -> None:
        """Read a decoder, and index which node makes each value."""
        super().__init__(path)
        self.capacity = capacity
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.inputs = {value.name: value for value in self.graph.input}
        self.pasts = [name for name in self.inputs if name.startswith("past.")]

    def rewrite(self) -> None:
        """Rewrite the graph; ExportError where it is not as expected."""
        if not self.pasts or not {MASK, *SEQUENCE_AXES} <= self.inputs.keys():
            raise refusal("it lacks an input of a decoder whose cache grows")
        mask = self.find_mask()
        lengths = self.find_lengths()
        nodes = list(self.mask_nodes(mask, self.masked_score(mask)))
        for node in self.graph.node:
            if not {mask, *lengths} & {*node.output}:
                appends = node.op_type == "Concat" and node.input[0] in self.pasts
                nodes.append(self.scatter(node) if appends else node)
        for name, rank in lengths.items():
            self.constant(name, np.full((1,) * rank, self.capacity))
        self.replace(nodes)
        self.check()

    def find_mask(self) -> str:
        """The one value that every layer adds to its attention scores, whatever the embeddings are."""
        softmaxes = [node for node in self.graph.node if node.op_type == "Softmax"]
        masks = set()
        for node in softmaxes:
            maker = self.makers.get(node.input[0])
            added = maker.input if maker is not None and maker.op_type == "Add" else ()
            masks |= {name for name in added if EMBEDS not in self.reached([name], content=True)}
        if len(softmaxes) != len(self.pasts) // 2 or len(masks) != 1:
            raise refusal("its layers do not all add one mask to the scores of their attention")
        (mask,) = masks
        return str(mask)

    def masked_score(self, mask: str) -> NDArray[Any]:
        """The value that the mask adds for a key that is hidden.

        Computes the mask for prompts and single tokens, and refuses any but the causal one, such as a
        window or a bias: the new mask is causal.
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
        several = min(CHECKED_TOKENS, self.capacity)
        calls = [(n, past) for n in (several, 1) for past in (0, self.capacity - n)]
        lowest: NDArray[Any] | None = None
        try:
            evaluator: Any = ReferenceEvaluator(model)
            for count, past in calls:
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
        """An array of ones of an input's type and shape."""
        kind = value.type.tensor_type
        axes = [axis.dim_value or sizes[axis.dim_param] for axis in kind.shape.dim]
        return np.ones(axes, self.onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))

    def find_lengths(self) -> dict[str, int]:
        """Values that are the cache's length plus the call's, by name, and their rank: now the capacity."""
        parts: dict[str, tuple[str, int]] = {}
        lengths = {}
        for node in self.graph.node:
            source = node.input[0] if node.input else ""
            if node.op_type == "Shape":
                axes = self.shape_axes(node)
                if source in self.pasts and axes == [CACHE_AXIS]:
                    parts[node.output[0]] = "past", 1
                elif axes == [SEQUENCE_AXES.get(source)]:
                    parts[node.output[0]] = "call", 1
            elif node.op_type == "Squeeze" and source in parts:
                parts[node.output[0]] = parts[source][0], 0
            elif node.op_type == "Add" and all(name in parts for name in node.input):
                (one, rank), (other, same) = (parts[name] for name in node.input)
                if {one, other} == {"past", "call"} and rank == same:
                    lengths[node.output[0]] = rank
        return lengths

    def mask_nodes(self, mask: str, lowest: NDArray[Any]) -> Iterator[Node]:
        """The nodes of the causal mask: a token sees the cache up to the slot that it is written to."""
        axis = SEQUENCE_AXES[EMBEDS]
        slots, visible = np.arange(self.capacity), np.array(0, lowest.dtype)
        zero, one, first, batch = (np.array(value) for value in (0, 1, [0], [1, 2, 3]))
        yield self.make("Shape", [EMBEDS], "static.sizes", start=axis, end=axis + 1)
        yield self.make("Squeeze", ["static.sizes", first], "static.count")
        yield self.make("Range", [zero, "static.count", one], "static.tokens")
        yield self.make("Unsqueeze", ["static.tokens", np.array([1])], "static.rows")
        yield self.make("Unsqueeze", [WRITE_INDICES, batch], "static.first")
        yield self.make("Add", ["static.first", "static.rows"], "static.last")
        yield self.make("LessOrEqual", [slots, "static.last"], "static.visible")
        yield self.make("Where", ["static.visible", visible, np.asarray(lowest)], mask)

    def scatter(self, node: Node) -> Node:
        """The node that writes into the cache, in place of one that appends to it."""
        past, *new = node.input
        axis = self.onnx.helper.get_node_attr_value(node, "axis")
        present = str(past).replace("past.", "present.")
        wrong = len(new) != 1 or axis not in (CACHE_AXIS, CACHE_AXIS - 4)
        if wrong or list(node.output) != [present]:
            raise refusal(f"{node.name} is not what appends to {past}")
        inputs = [past, *new, WRITE_INDICES]
        return self.make("TensorScatter", inputs, present, axis=CACHE_AXIS - 4, mode="linear")

    def replace(self, nodes: Sequence[Node]) -> None:
        """Set the graph's nodes, without those that no output needs, and its new inputs and outputs."""
        self.makers = {name: node for node in nodes for name in node.output}
        needed = self.ancestors([value.name for value in self.graph.output], nodes)
        read = {name for node in needed for name in node.input}
        self.constants = {name: one for name, one in self.constants.items() if name in read}
        self.set_nodes(needed)
        self.graph.ClearField("value_info")
        for value in self.graph.input:
            if value.name == MASK:
                make, kind = self.onnx.helper.make_tensor_value_info, self.onnx.TensorProto.INT64
                value.CopyFrom(make(WRITE_INDICES, kind, ["batch"]))
        for value in (*self.graph.input, *self.graph.output):
            if value.name.startswith(("past.", "present.")):
                value.type.tensor_type.shape.dim[CACHE_AXIS].dim_value = self.capacity

    def check(self) -> None:
        """ExportError where a node that was not rewritten reads the cache or the old mask."""
        written = []
        for node in self.graph.node:
            if node.op_type == "TensorScatter":
                written.append(node.input[0])
            elif MASK in node.input:
                raise refusal(f"{node.name} reads the mask")
            elif set(self.pasts) & {*node.input} and (
                node.op_type != "Shape" or CACHE_AXIS in self.shape_axes(node)
            ):
                raise refusal(f"{node.name} reads the cache")
        if sorted(written) != sorted(self.pasts):
            raise refusal("it does not append to each cache once")

    def ancestors(self, names: Sequence[str], nodes: Sequence[Node] | None = None) -> list[Node]:
        """The nodes that compute some values, in the graph's order."""
        found = self.reached(names)
        return [one for one in nodes or self.graph.node if found & {*one.output}]

    def reached(self, names: Sequence[str], *, content: bool = False) -> set[str]:
        """Some values and all that they depend on; with `content` not by their sizes alone."""
        todo, seen = list(names), set[str]()
        while todo:
            name = todo.pop()
            node = self.makers.get(name)
            by_size = content and node is not None and node.op_type == "Shape"
            if name not in seen and not by_size:
                seen.add(name)
                todo += filter(None, node.input) if node is not None else ()
        return seen

    def shape_axes(self, node: Node) -> list[int]:
        """The axes whose sizes a Shape node returns."""
        options = {one.name: one.i for one in node.attribute}
        value = self.inputs.get(node.input[0])
        rank = len(value.type.tensor_type.shape.dim) if value is not None else 0
        return list(range(rank))[options.get("start", 0) : options.get("end", rank)]


def refusal(why: str) -> ExportError:
    """The error for a decoder that cannot be rewritten."""
    return ExportError(
        f"the graph cannot be given a static cache: {why}. Build with --decoder concat, or "
        "export the checkpoint again with this version of foveate."
    )
