"""The compressor's second half in few operators, all on the device: f_θ, top-k, and the kept prompt."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from foveate.modeling.f_theta import EPSILON, KERNEL, FTheta
from foveate.modeling.graph_builder import GraphBuilder

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
MOST_TOKENS = 1 << 16
ALIGNED = 4
"""Channels come in multiples of this, which products on tensor cores ask for."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The compressor's inputs as the graph has them, visual tokens before text.

    Attributes:
        visual: [N_v, H].
        embeds: [N, H], N = N_v + N_t.
        places: int64 [N], each token's place in the prompt.
        positions: int64 [N, A].
        instruction: int64 [N_u], which of N are the instruction.
        weights: float32 [N_u], what each counts in the mean; 0 for padding.
        keep: int64 [1], in host memory.
    """

    visual: ir.Value
    embeds: ir.Value
    places: ir.Value
    positions: ir.Value
    instruction: ir.Value
    weights: ir.Value
    keep: ir.Value


def prompt_inputs(graph: GraphBuilder, width: int, axes: int) -> Inputs:
    """The inputs of the compressor graph, in their order.

    Padding may follow the text: its places come after the prompt, so that no token attends to it and
    it ends up last.
    """
    visual = graph.input("visual_embeds", graph.dtype, ["visual", width])
    text = graph.input("text_embeds", graph.dtype, ["text", width])
    return Inputs(
        visual=visual,
        embeds=graph.op("Concat", visual, text, axis=0),
        places=graph.input("places", INT64, ["rows"]),
        positions=graph.input("position_ids", INT64, ["rows", axes]),
        instruction=graph.input("instruction_rows", INT64, ["instruction"]),
        weights=graph.input("instruction_weights", FLOAT, ["instruction"]),
        keep=graph.input("keep", INT64, [1]),
    )


def pool(
    graph: GraphBuilder, prompt: Inputs, attention: ir.Value, heads: int, channels: int
) -> ir.Value:
    """Attention float32 [heads, N_u, N] averaged, of visual tokens alone: [channels, N_v].

    Args:
        graph: Where to add it.
        prompt: Whose instruction's weights are those of the mean.
        attention: From each instruction token to all tokens.
        heads: How many heads it has.
        channels: 1 averages over heads too; else as many as there are heads.
    """
    share = graph.op("Tile", prompt.weights, graph.constant(np.array([heads], np.int64)))
    shape = [1, -1] if channels == 1 else [heads, 1, -1]
    share = graph.op("Reshape", share, graph.constant(np.array(shape, np.int64)))
    if channels == 1:
        flat = graph.op("Flatten", attention, axis=2)
        mean = graph.contrib("FusedMatMul", share, flat, alpha=1 / heads)
    else:
        apart = graph.op("MatMul", share, attention)
        mean = graph.op("Reshape", apart, graph.constant(np.array([heads, -1], np.int64)))
    zero, one = (graph.constant(np.array([n], np.int64)) for n in (0, 1))
    return graph.op("Slice", mean, zero, _count(graph, prompt.visual), one)


def rank(graph: GraphBuilder, pooled: ir.Value, prompt: Inputs, network: FTheta | None) -> ir.Value:
    """What tokens are ranked by, float32 [N_v]: f_θ's logits, or A_v⁰ itself.

    Each convolution is one product of every token's neighbourhood, which tensor cores take. A row of
    zeros stands after the last token, and before the first, as index -1; a channel of ones carries the
    biases, and is zero in that row, which thus stays zero.
    """
    flat = graph.constant(np.array([-1], np.int64))
    if network is None:
        return graph.op("Reshape", pooled, flat)
    ones = graph.op(
        "ConstantOfShape", _count(graph, prompt.visual), value=ir.tensor(np.ones(1, np.float32))
    )
    if network.scaling == "log":
        count = graph.op("ReduceSum", ones, graph.constant(np.array([0], np.int64)), keepdims=1)
        scaled = graph.op("Mul", pooled, count)
        pooled = graph.op("Log", graph.op("Add", scaled, graph.constant(np.float32(EPSILON))))
    width = aligned(network.channels_in)
    one = graph.op("Unsqueeze", ones, graph.constant(np.array([0], np.int64)))
    carrying = [one] * (width - network.channels_in)
    tokens = graph.op("Transpose", graph.op("Concat", pooled, *carrying, axis=0), perm=[1, 0])
    outside = graph.constant(np.zeros((1, width), np.float32))
    hidden = graph.op("Concat", tokens, outside, axis=0)

    token = np.arange(MOST_TOKENS, dtype=np.int32)[:, None]
    zero = graph.constant(np.array([0], np.int64))
    neighbours = graph.constant(token + np.arange(-(KERNEL // 2), KERNEL // 2 + 1, dtype=np.int32))
    inside = graph.op("Slice", neighbours, zero, _count(graph, prompt.visual), zero)
    near = graph.op("Concat", inside, graph.constant(np.full((1, KERNEL), -1, np.int32)), axis=0)
    layers = network.merged()
    for number, (weight, bias) in enumerate(layers, start=1):
        last = number == len(layers)
        rows = graph.op("Gather", hidden, inside if last else near, axis=0)
        matrix = with_bias(weight, bias, carried=not last)
        rows = graph.op("Reshape", rows, graph.constant(np.array([-1, matrix.shape[1]], np.int64)))
        hidden = graph.op("Relu", graph.linear(rows, f"f_theta.{number}", matrix, None))
    head = network.head
    assert head.bias is not None
    logits = graph.linear(hidden, "f_theta.head", head.weight[..., 0], None)
    constant = graph.weight("f_theta.head.bias", head.bias)
    return graph.op("Add", graph.op("Reshape", logits, flat), constant)


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


def select(
    graph: GraphBuilder, prompt: Inputs, scores: ir.Value, by_attention: bool, width: int, axes: int
) -> ir.Model:
    """Keep the best-ranked visual tokens, in their order, and finish the graph.

    Rather than sorted, what is kept is counted: how many kept places lie before a token's place is
    where it goes.
    """
    zero = graph.constant(np.array([0], np.int64))
    if by_attention:
        relevance = graph.op("Div", scores, graph.op("ReduceSum", scores, zero, keepdims=1))
    else:
        relevance = graph.op("Softmax", scores, axis=-1)
    best = graph.outputs("TopK", [scores, prompt.keep], 2, axis=0, largest=1, sorted=0)[1]
    counting = graph.constant(np.arange(MOST_TOKENS, dtype=np.int64))
    visual, rows = _count(graph, prompt.visual), _count(graph, prompt.places)
    text = graph.op("Slice", counting, visual, rows, zero)
    chosen = graph.op("Concat", best, text, axis=0)
    places = graph.op("Gather", prompt.places, chosen, axis=0)
    each = graph.op("ConstantOfShape", graph.op("Shape", chosen), value=_integer(1))
    none = graph.op("ConstantOfShape", rows, value=_integer(0))
    marks = graph.op("ScatterElements", none, places, each, axis=0)
    before = graph.op("CumSum", marks, graph.constant(np.int64(0)), exclusive=1)
    slots = graph.op("Gather", before, places, axis=0)
    kept = graph.op("ScatterElements", chosen, slots, chosen, axis=0)

    embeds = graph.op("Unsqueeze", prompt.embeds, zero)
    return graph.model(
        "compressor",
        {
            "inputs_embeds": (
                graph.op("Gather", embeds, kept, axis=1), graph.dtype, [1, "kept_prompt", width],
            ),
            "kept_position_ids": (
                graph.op("Gather", prompt.positions, kept, axis=0), INT64, ["kept_prompt", axes],
            ),
            "kept_rows": (kept, INT64, ["kept_prompt"]),
            "relevance": (relevance, FLOAT, ["visual"]),
            "scores": (scores, FLOAT, ["visual"]),
        },
    )  # fmt: skip


def _count(graph: GraphBuilder, value: ir.Value) -> ir.Value:
    """The length of a value's first axis, int64 [1] in host memory."""
    return graph.op("Shape", value, start=0, end=1)


def _integer(number: int) -> ir.TensorProtocol:
    """What ConstantOfShape repeats, an int64."""
    return ir.tensor(np.array([number], np.int64))
