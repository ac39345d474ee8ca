"""Rewrites the top-k and the sorts of a compressor graph to operators of any size.

TensorRT sorts no more than 3840 elements, and where K is an input it does not check that when it builds.
The K best scores are therefore found by their threshold, the K-th largest score: of all float32 numbers that
at least K scores reach it is the largest. Each step compares the scores with hundreds of candidates at once and
narrows the threshold by eight or nine bits, so that four steps find it exactly. Of scores equal to the threshold
the first are kept, as onnxruntime does.

Nothing here is a CumSum: until version 10 TensorRT's parser makes a loop of it, one element at a time. Counts are
products with a triangular matrix instead. All numbers are float32 and whole, at most 2²⁴, and thus exact.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import ExportError
from foveate.export.tensorrt.rewriter import Node, Rewriter

TOPK = b'"\x04TopK'
"""A node's operator as a file has it: the field's number, the length, the text."""
MOST = 1 << 24
"""The most elements of which float32 counts every one."""
BLOCK, TRIANGLE = 256, "topk.triangle"
"""How many marks are counted by one product, and the name of its matrix."""
EXPONENTS = np.arange(256)
STEPS = ((256, 2.0**-8), (256, 2.0**-16), (128, 2.0**-23))
"""How many candidates each step after the first has, and how far apart they are, as a share of a binade."""
TEXT, VISUAL, POSITIONS = "text_index", "visual_index", "position_ids"
"""Inputs of the compressor: places of tokens in the prompt, and the positions of the whole prompt."""


def has_topk(graph: Path) -> bool:
    """Whether an ONNX file, its weights beside it, has a top-k or a sort."""
    return TOPK in graph.read_bytes()


def replace_topk(rewriter: Rewriter, most: int) -> None:
    """Replace each TopK whose K is computed; the same elements are kept, ties broken the same way.

    Args:
        rewriter: The graph.
        most: The most tokens of a prompt that the graph will be run with.

    Raises:
        ExportError: A TopK that is not as foveate exports it.
    """
    found = TopKs(rewriter)
    if not found.computed:
        return
    nodes: list[Node] = []
    for node in rewriter.graph.node:
        if not any(node is one for one in found.computed):
            nodes.append(node)
        elif found.is_order(node):
            nodes += order(rewriter, node, most)
        elif (best := found.ranking(node)) is not None:
            nodes += selection(rewriter, best, node, most)
        elif not found.is_ranking(node):
            raise ExportError(
                f"TensorRT sorts no more than 3840 elements, and the node {node.name} (TopK), which may "
                "sort more, cannot be rewritten. Export the checkpoint again with this version of foveate."
            )
    rewriter.set_needed(nodes)


class TopKs:
    """The TopK nodes of a graph whose K is computed, and what they are for."""

    def __init__(self, rewriter: Rewriter) -> None:
        """Index which node makes each value, and which read it."""
        self.helper = rewriter.onnx.helper
        nodes = list(rewriter.graph.node)
        self.makers = {name: node for node in nodes for name in node.output}
        self.users: dict[str, list[Node]] = {}
        for node in nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.outputs = {value.name for value in rewriter.graph.output}
        self.computed = [
            node
            for node in nodes
            if node.op_type == "TopK" and node.input[1] not in rewriter.constants
        ]

    def is_order(self, node: Node) -> bool:
        """Whether a TopK says in what order the places of text and kept visual tokens are."""
        places, count = self.makers.get(node.input[0]), node.input[1]
        if self.form(node) != (False, [1]) or places is None or places.op_type != "Concat":
            return False
        text, visual = places.input[0], self.makers.get(places.input[-1])
        length = self.source(count, "Reshape", "Gather", "Shape")
        return (
            len(places.input) == 2
            and text == TEXT
            and visual is not None
            and (visual.op_type, visual.input[0]) == ("Gather", VISUAL)
            and length == node.input[0]
        )

    def ranking(self, node: Node) -> Node | None:
        """The TopK by score whose indices this one brings in order."""
        best = self.makers.get(node.input[0])
        if self.form(node) != (False, [0]) or best is None or best.input[-1] != node.input[1]:
            return None
        return best if self.is_ranking(best) and best.output[1] == node.input[0] else None

    def is_ranking(self, node: Node) -> bool:
        """Whether of a TopK by score the indices alone are read, by one other TopK."""
        users = self.users.get(node.output[1], [])
        return (
            node.op_type == "TopK"
            and self.form(node) == (True, [1])
            and [one.op_type for one in users] == ["TopK"]
        )

    def form(self, node: Node) -> tuple[bool, list[int]]:
        """Whether a TopK takes the largest, and which of its outputs are read."""
        options = {one.name: self.helper.get_attribute_value(one) for one in node.attribute}
        read = [
            place
            for place, name in enumerate(node.output)
            if name in self.users or name in self.outputs
        ]
        return options.get("largest", 1) == 1, read

    def source(self, name: str, *kinds: str) -> str | None:
        """What a value is made of by a chain of nodes of these kinds, from the last up."""
        for kind in kinds:
            maker = self.makers.get(name)
            if maker is None or maker.op_type != kind:
                return None
            name = maker.input[0]
        return name


def selection(rewriter: Rewriter, best: Node, kept: Node, most: int) -> list[Node]:
    """The nodes that keep the indices of the K best scores, ascending, in place of two TopK.

    Kept scores go to the front and the others behind them, each in their order; the first K are kept.
    Scores that are not numbers reach nothing: what is kept then is some K tokens.
    """
    make = Nodes(rewriter, kept.output[0])
    scores, keep = best.input
    count = make.op("ReduceSum", make.full(keep, 1), np.array([0]), keepdims=1)
    threshold = make.threshold(scores, count)
    greater, equal = (make.op(kind, scores, threshold) for kind in ("Greater", "Equal"))
    above, level = make.as_float32(greater), make.as_float32(equal)
    before = make.before(make.op("Concat", above, level, axis=0), 2, most)
    above_before, level_before = (
        make.op("Slice", before, np.array([row]), np.array([row + 1]), np.array([0]))
        for row in (0, 1)
    )
    room = make.op("Sub", count, make.sum(above, 1))
    chosen = make.op("Or", greater, make.op("And", equal, make.op("Less", level_before, room)))
    kept_before = make.op("Add", above_before, make.op("Min", level_before, room))
    numbers = make.numbers(scores)
    dropped_before = make.op("Sub", numbers, kept_before)
    behind = make.op("Add", make.sum(make.as_float32(chosen), 1), dropped_before)
    slots = make.op("Where", chosen, kept_before, behind)
    sorted_ = make.at_slots(make.op("Reshape", slots, np.array([-1])), numbers)
    first = make.op("Slice", sorted_, np.array([0]), keep, np.array([0]))
    make.as_int64(first, kept.output[0])
    return make.nodes


def order(rewriter: Rewriter, node: Node, most: int) -> list[Node]:
    """The nodes that say in what order places of a prompt are, no two of them the same, in place of a TopK."""
    make = Nodes(rewriter, node.output[1])
    places = node.input[0]
    prompt = make.op(
        "Slice", make.op("Shape", POSITIONS), np.array([1]), np.array([2]), np.array([0])
    )
    ones = make.full(make.op("Shape", places), 1)
    marks = make.op("ScatterElements", make.full(prompt, 0), places, ones, axis=0)
    before = make.before(make.op("Unsqueeze", marks, np.array([0])), 1, most)
    slots = make.op("Gather", make.op("Reshape", before, np.array([-1])), places, axis=0)
    make.as_int64(make.at_slots(slots, make.numbers(places)), node.output[1])
    return make.nodes


class Nodes:
    """New nodes, named after the value that the last of them makes.

    Attributes:
        nodes: The nodes, in order.
    """

    def __init__(self, rewriter: Rewriter, output: str) -> None:
        """Begin without nodes."""
        self.rewriter, self.output = rewriter, output
        self.nodes: list[Node] = []

    def op(
        self, kind: str, *inputs: str | NDArray[Any], output: str | None = None, **options: Any
    ) -> str:
        """Add a node; its output's name."""
        name = output or f"{self.output}.{kind}.{len(self.nodes)}"
        self.nodes.append(self.rewriter.make(kind, inputs, name, **options))
        return name

    def as_float32(self, value: str) -> str:
        """A value as float32."""
        return self.op("Cast", value, to=self.rewriter.onnx.TensorProto.FLOAT)

    def as_int64(self, value: str, output: str | None = None) -> str:
        """A value as int64."""
        return self.op("Cast", value, output=output, to=self.rewriter.onnx.TensorProto.INT64)

    def full(self, shape: str, number: float) -> str:
        """Float32 of a shape, all the same number."""
        value = self.rewriter.onnx.numpy_helper.from_array(np.array([number], np.float32))
        return self.op("ConstantOfShape", shape, value=value)

    def sum(self, value: str, axis: int) -> str:
        """A sum over one axis, which stays."""
        return self.op("ReduceSum", value, np.array([axis]), keepdims=1)

    def numbers(self, value: str) -> str:
        """0, 1, 2 and so on, float32, as many as a value [N] has elements."""
        length = self.op("Squeeze", self.op("Shape", value), np.array([0]))
        return self.as_float32(self.op("Range", np.array(0), length, np.array(1)))

    def at_slots(self, slots: str, values: str) -> str:
        """Values [N], each moved to its slot; no two slots are the same."""
        return self.op("ScatterElements", values, self.as_int64(slots), values, axis=0)

    def threshold(self, scores: str, count: str) -> str:
        """The `count`-th largest score, float32 [1, 1]: its binade first, then its place in that.

        A candidate is scale · (first + fraction): two tables by sign and exponent, and a fraction that
        each step brings nearer. 23 bits of a fraction are exact.
        """
        scales, firsts = binades()
        index = self.reached(scores, count, scales * firsts)
        binade = self.as_int64(index)
        scale, base = (
            self.op("Gather", table.ravel(), binade, axis=0) for table in (scales, firsts)
        )
        for candidates, width in STEPS:
            ahead = (np.arange(candidates) * width).astype(np.float32)[:, None]
            index = self.reached(scores, count, self.op("Mul", scale, self.op("Add", base, ahead)))
            base = self.op("Add", base, self.op("Mul", index, np.array(width, np.float32)))
        return self.op("Mul", scale, base)

    def reached(self, scores: str, count: str, candidates: str | NDArray[np.float32]) -> str:
        """Of ascending candidates [n, 1] the number of the last that `count` scores reach, float32 [1, 1]."""
        reaching = self.as_float32(self.op("GreaterOrEqual", scores, candidates))
        enough = self.as_float32(self.op("GreaterOrEqual", self.sum(reaching, 1), count))
        last = self.op("Sub", self.sum(enough, 0), np.array(1, np.float32))
        return self.op("Max", last, np.array(0, np.float32))

    def before(self, marks: str, rows: int, most: int) -> str:
        """How much of each row stands before each of its elements, float32 [rows, N] of the same.

        Within blocks it is a product with a triangular matrix; what the blocks before hold is counted
        in the same way.

        Args:
            marks: Whole numbers.
            rows: How many rows.
            most: The most elements of a row.
        """
        axis, size = np.array([1]), np.array([BLOCK])
        length = self.op("Slice", self.op("Shape", marks), axis, np.array([2]), np.array([0]))
        blocks = self.op("Add", self.op("Div", length, size), np.array([1]))
        lacking = self.op("Sub", self.op("Mul", blocks, size), length)
        padding = self.full(self.op("Concat", np.array([rows]), lacking, axis=0), 0)
        padded = self.op("Concat", marks, padding, axis=1)
        blocked = self.op("Reshape", padded, np.array([rows, -1, BLOCK]))
        earlier = self.rewriter.constant(TRIANGLE, np.triu(np.ones((BLOCK, BLOCK), np.float32), 1))
        before = self.op("MatMul", blocked, earlier)
        if most >= BLOCK:
            sums = self.op("ReduceSum", blocked, np.array([2]), keepdims=0)
            whole = self.before(sums, rows, most // BLOCK + 1)
            before = self.op("Add", before, self.op("Unsqueeze", whole, np.array([2])))
        flat = self.op("Reshape", before, np.array([rows, -1]))
        return self.op("Slice", flat, np.array([0]), length, axis)


def binades() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """All signs and exponents of float32, ascending, as scale and smallest fraction, float32 [512, 1].

    The smallest float32 of each is scale · fraction, and the next ones are 2⁻²³ · scale apart. Infinity
    has a scale of its own; exponent 0 has the numbers next to zero, whose fractions begin at 0.
    """
    powers = np.maximum(EXPONENTS, 1) - 127
    scales = np.where(EXPONENTS == 255, np.inf, np.ldexp(1.0, np.minimum(powers, 127)))
    firsts = np.minimum(EXPONENTS, 1).astype(np.float64)
    lowest = 2.0**-23 - firsts - 1
    both = np.concatenate([scales[::-1], scales]), np.concatenate([lowest[::-1], firsts])
    scale, first = (one.astype(np.float32)[:, None] for one in both)
    return scale, first
