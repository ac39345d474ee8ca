"""The compressor's second half in few operators, all on the device: f_θ, top-k, and the kept prompt."""

from functools import cached_property

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from foveate.bundle.manifest import ModelFacts
from foveate.export.contrib.word_factors import word_factors
from foveate.modeling.f_theta import EPSILON, KERNEL, FTheta
from foveate.modeling.graph_builder import FLOAT, INT64, GraphBuilder
from foveate.modeling.ranker import Ranker

MOST_TOKENS = 1 << 16
ALIGNED = 4
"""Channels come in multiples of this, which products on tensor cores ask for."""


class SelectionBuilder(GraphBuilder):
    """Builds the compressor's graph, whose inputs have visual tokens before text.

    Padding may follow the text: its places come after the prompt, so that no token attends to it and
    it ends up last.

    Attributes:
        facts: The model's sizes.
        visual: [N_v, H].
        embeds: [N, H], N = N_v + N_t.
        places: int64 [N], each token's place in the prompt.
        positions: int64 [N, A].
        instruction: int64 [N_u], which of N are the instruction.
        weights: float32 [N_u], what each counts in the mean; 0 for padding.
        keep: int64 [1], in host memory.
    """

    def __init__(self, dtype: torch.dtype, facts: ModelFacts) -> None:
        """Begin with the inputs, in their order."""
        super().__init__(dtype)
        self.facts = facts
        self.visual = self.input("visual_embeds", self.dtype, ["visual", facts.hidden_size])
        text = self.input("text_embeds", self.dtype, ["text", facts.hidden_size])
        self.embeds = self.op("Concat", self.visual, text, axis=0)
        self.places = self.input("places", INT64, ["rows"])
        self.positions = self.input("position_ids", INT64, ["rows", facts.rope.axes])
        self.instruction = self.input("instruction_rows", INT64, ["instruction"])
        self.weights = self.input("instruction_weights", FLOAT, ["instruction"])
        self.keep = self.input("keep", INT64, [1])

    def count(self, value: ir.Value) -> ir.Value:
        """The length of a value's first axis, int64 [1] in host memory."""
        return self.op("Shape", value, start=0, end=1)

    @cached_property
    def ones(self) -> ir.Value:
        """As many ones as there are visual tokens, float32 [N_v]."""
        one = ir.tensor(np.ones(1, np.float32))
        return self.op("ConstantOfShape", self.count(self.visual), value=one)

    @cached_property
    def visual_count(self) -> ir.Value:
        """N_v, float32 [1] on the device: the value of a shape is in host memory."""
        return self.op("ReduceSum", self.ones, [0], keepdims=1)

    def pool(self, attention: ir.Value, ranker: Ranker) -> ir.Value:
        """Attention float32 [heads, N_u, N] summed up over the instruction, of visual tokens alone.

        Args:
            attention: From each instruction token to all tokens.
            ranker: Weighs the instruction's tokens, and reads heads apart or their mean.

        Returns:
            float32 [1, N_v], averaged over heads; [heads, N_v] of heads apart.
        """
        heads, factors = self.facts.heads, self.weights
        apart = ranker.network is not None and ranker.network.channels_in > 1
        if ranker.words.form != "mean":
            words = self.visible(self.op("ReduceMean", attention, [0], keepdims=0))
            count = self.visual_count
            factors = word_factors(self, words, self.weights, count, ranker.words)
            if not apart:
                return self.op("MatMul", self.op("Unsqueeze", factors, [0]), words)
        share = self.op("Tile", factors, [heads])
        if apart:
            share = self.op("Reshape", share, [heads, 1, -1])
            summed = self.op("Reshape", self.op("MatMul", share, attention), [heads, -1])
        else:
            share = self.op("Reshape", share, [1, -1])
            flat = self.op("Flatten", attention, axis=2)
            summed = self.contrib("FusedMatMul", share, flat, alpha=1 / heads)
        return self.visible(summed)

    def visible(self, attention: ir.Value) -> ir.Value:
        """The visual tokens' part of attention [..., N]: [..., N_v]."""
        return self.op("Slice", attention, [0], self.count(self.visual), [-1])

    def rank(self, pooled: ir.Value, network: FTheta | None) -> ir.Value:
        """What tokens are ranked by, float32 [N_v]: f_θ's logits, or A_v⁰ itself.

        Each convolution is one product of every token's neighbourhood, which tensor cores take. A row
        of zeros stands after the last token, and before the first, as index -1; a channel of ones
        carries the biases, and is zero in that row, which thus stays zero.
        """
        if network is None:
            return self.op("Reshape", pooled, [-1])
        visual = self.count(self.visual)
        ones = self.ones
        if network.scaling == "log":
            scaled = self.op("Mul", pooled, self.visual_count)
            pooled = self.op("Log", self.op("Add", scaled, np.float32(EPSILON)))
        width = aligned(network.channels_in)
        carrying = [self.op("Unsqueeze", ones, [0])] * (width - network.channels_in)
        tokens = self.op("Transpose", self.op("Concat", pooled, *carrying, axis=0), perm=[1, 0])
        hidden = self.op("Concat", tokens, np.zeros((1, width), np.float32), axis=0)

        token = np.arange(MOST_TOKENS, dtype=np.int32)[:, None]
        neighbours = token + np.arange(-(KERNEL // 2), KERNEL // 2 + 1, dtype=np.int32)
        inside = self.op("Slice", neighbours, [0], visual, [0])
        near = self.op("Concat", inside, np.full((1, KERNEL), -1, np.int32), axis=0)
        layers = network.merged()
        for number, (weight, bias) in enumerate(layers, start=1):
            last = number == len(layers)
            rows = self.op("Gather", hidden, inside if last else near, axis=0)
            matrix = with_bias(weight, bias, carried=not last)
            rows = self.op("Reshape", rows, [-1, matrix.shape[1]])
            hidden = self.op("Relu", self.linear(rows, f"f_theta.{number}", matrix, None))
        head = network.head
        assert head.bias is not None
        logits = self.linear(hidden, "f_theta.head", head.weight[..., 0], None)
        constant = self.weight("f_theta.head.bias", head.bias)
        return self.op("Add", self.op("Reshape", logits, [-1]), constant)

    def select(self, scores: ir.Value, by_attention: bool) -> ir.Model:
        """Keep the best-ranked visual tokens, in their order, and finish the graph.

        Rather than sorted, what is kept is counted: how many kept places lie before a token's place is
        where it goes.
        """
        if by_attention:
            relevance = self.op("Div", scores, self.op("ReduceSum", scores, [0], keepdims=1))
        else:
            relevance = self.op("Softmax", scores, axis=-1)
        best = self.outputs("TopK", [scores, self.keep], 2, axis=0, largest=1, sorted=0)[1]
        counting = np.arange(MOST_TOKENS, dtype=np.int64)
        visual, rows = self.count(self.visual), self.count(self.places)
        text = self.op("Slice", counting, visual, rows, [0])
        chosen = self.op("Concat", best, text, axis=0)
        places = self.op("Gather", self.places, chosen, axis=0)
        one, nothing = (ir.tensor(np.array([number], np.int64)) for number in (1, 0))
        each = self.op("ConstantOfShape", self.op("Shape", chosen), value=one)
        none = self.op("ConstantOfShape", rows, value=nothing)
        marks = self.op("ScatterElements", none, places, each, axis=0)
        before = self.op("CumSum", marks, np.int64(0), exclusive=1)
        slots = self.op("Gather", before, places, axis=0)
        kept = self.op("ScatterElements", chosen, slots, chosen, axis=0)

        embeds = self.op("Gather", self.op("Unsqueeze", self.embeds, [0]), kept, axis=1)
        positions = self.op("Gather", self.positions, kept, axis=0)
        facts = self.facts
        return self.model(
            "compressor",
            {
                "inputs_embeds": (embeds, self.dtype, [1, "kept_prompt", facts.hidden_size]),
                "kept_position_ids": (positions, INT64, ["kept_prompt", facts.rope.axes]),
                "kept_rows": (kept, INT64, ["kept_prompt"]),
                "relevance": (relevance, FLOAT, ["visual"]),
                "scores": (scores, FLOAT, ["visual"]),
            },
        )


def with_bias(weight: Tensor, bias: Tensor, carried: bool) -> Tensor:
    """A convolution as the matrix that its inputs' neighbourhoods are multiplied by.

    Args:
        weight: [out, in, 3].
        bias: [out]; it comes from the channel of ones, which is the first after the inputs'.
        carried: Whether the outputs have a channel of ones too.

    Returns:
        [aligned(out), 3 · aligned(in)]; [out, …] where no ones are carried on.
    """
    outputs, inputs, _ = weight.shape
    matrix = torch.zeros(aligned(outputs) if carried else outputs, KERNEL, aligned(inputs))
    matrix[:outputs, :, :inputs] = weight.transpose(1, 2)
    matrix[:outputs, KERNEL // 2, inputs] = bias
    if carried:
        matrix[outputs, KERNEL // 2, inputs] = 1
    return matrix.flatten(1)


def aligned(channels: int) -> int:
    """Channels with one of ones, padded to a multiple of `ALIGNED`."""
    return (channels // ALIGNED + 1) * ALIGNED
