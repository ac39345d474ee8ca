"""The compressor's second half in few operators, all on the device: f_θ, top-k, and the kept prompt."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from foveate.export.contrib.graph_builder import GraphTape
from foveate.modeling.f_theta import EPSILON, KERNEL, FTheta

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
MOST_TOKENS = 1 << 16
ALIGNED = 4
"""Channels come in multiples of this, which products on tensor cores ask for."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The compressor's inputs as the graph has them, the visual tokens' rows before the text's.

    Attributes:
        visual: [N_v, H].
        embeds: [N, H], N = N_v + N_t.
        places: int64 [N], each row's place in the prompt.
        positions: int64 [N, A].
        asked: int64 [N_u], the instruction's rows.
        weights: float32 [N_u], what each counts in the mean; 0 for one that only fills up.
        keep: int64 [1], in host memory.
    """

    visual: ir.Value
    embeds: ir.Value
    places: ir.Value
    positions: ir.Value
    asked: ir.Value
    weights: ir.Value
    keep: ir.Value


def prompt_inputs(tape: GraphTape, width: int, axes: int) -> Prompt:
    """The inputs that every family's compressor takes, in their order.

    Rows of text may follow that only fill up: their places come after the prompt, so no token looks at
    them and they end up last.
    """
    visual = tape.input("visual_embeds", tape.dtype, ["visual", width])
    text = tape.input("text_embeds", tape.dtype, ["text", width])
    return Prompt(
        visual=visual,
        embeds=tape.op("Concat", visual, text, axis=0),
        places=tape.input("places", INT64, ["rows"]),
        positions=tape.input("position_ids", INT64, ["rows", axes]),
        asked=tape.input("instruction_rows", INT64, ["instruction"]),
        weights=tape.input("instruction_weights", FLOAT, ["instruction"]),
        keep=tape.input("keep", INT64, [1]),
    )


def pool(
    tape: GraphTape, prompt: Prompt, attention: ir.Value, heads: int, channels: int
) -> ir.Value:
    """Attention float32 [heads, N_u, N] averaged, of visual tokens alone: [channels, N_v].

    Args:
        tape: Where to record it.
        prompt: Whose instruction's weights are those of the mean.
        attention: From each instruction token to all rows.
        heads: How many heads it has.
        channels: 1 averages over heads too; else as many as there are heads.
    """
    share = tape.op("Tile", prompt.weights, tape.constant(np.array([heads], np.int64)))
    shape = [1, -1] if channels == 1 else [heads, 1, -1]
    share = tape.op("Reshape", share, tape.constant(np.array(shape, np.int64)))
    if channels == 1:
        flat = tape.op("Flatten", attention, axis=2)
        mean = tape.fused("FusedMatMul", share, flat, alpha=1 / heads)
    else:
        apart = tape.op("MatMul", share, attention)
        mean = tape.op("Reshape", apart, tape.constant(np.array([heads, -1], np.int64)))
    zero, one = (tape.constant(np.array([n], np.int64)) for n in (0, 1))
    return tape.op("Slice", mean, zero, _count(tape, prompt.visual), one)


def rank(tape: GraphTape, pooled: ir.Value, prompt: Prompt, network: FTheta | None) -> ir.Value:
    """What tokens are ranked by, float32 [N_v]: f_θ's logits, or A_v⁰ itself.

    Each convolution is one product of every token's neighbourhood, which tensor cores take. A row of
    zeros stands after the last token, and before the first, as index -1; a channel of ones carries the
    biases, and is zero in that row, which thus stays zero.
    """
    flat = tape.constant(np.array([-1], np.int64))
    if network is None:
        return tape.op("Reshape", pooled, flat)
    ones = tape.op(
        "ConstantOfShape", _count(tape, prompt.visual), value=ir.tensor(np.ones(1, np.float32))
    )
    if network.scaling == "log":
        count = tape.op("ReduceSum", ones, tape.constant(np.array([0], np.int64)), keepdims=1)
        scaled = tape.op("Mul", pooled, count)
        pooled = tape.op("Log", tape.op("Add", scaled, tape.constant(np.float32(EPSILON))))
    width = aligned(network.channels_in)
    one = tape.op("Unsqueeze", ones, tape.constant(np.array([0], np.int64)))
    carrying = [one] * (width - network.channels_in)
    tokens = tape.op("Transpose", tape.op("Concat", pooled, *carrying, axis=0), perm=[1, 0])
    outside = tape.constant(np.zeros((1, width), np.float32))
    hidden = tape.op("Concat", tokens, outside, axis=0)

    token = np.arange(MOST_TOKENS, dtype=np.int32)[:, None]
    zero = tape.constant(np.array([0], np.int64))
    neighbours = tape.constant(token + np.arange(-(KERNEL // 2), KERNEL // 2 + 1, dtype=np.int32))
    inside = tape.op("Slice", neighbours, zero, _count(tape, prompt.visual), zero)
    near = tape.op("Concat", inside, tape.constant(np.full((1, KERNEL), -1, np.int32)), axis=0)
    layers = network.merged()
    for number, (weight, bias) in enumerate(layers, start=1):
        last = number == len(layers)
        rows = tape.op("Gather", hidden, inside if last else near, axis=0)
        matrix = with_bias(weight, bias, carried=not last)
        rows = tape.op("Reshape", rows, tape.constant(np.array([-1, matrix.shape[1]], np.int64)))
        hidden = tape.op("Relu", tape.linear(rows, f"f_theta.{number}", matrix, None))
    head = network.head
    assert head.bias is not None
    logits = tape.linear(hidden, "f_theta.head", head.weight[..., 0], None)
    constant = tape.weight("f_theta.head.bias", head.bias)
    return tape.op("Add", tape.op("Reshape", logits, flat), constant)


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
    """Channels with one of ones, filled up to a multiple of `ALIGNED`."""
    return (channels // ALIGNED + 1) * ALIGNED


def select(
    tape: GraphTape, prompt: Prompt, scores: ir.Value, by_attention: bool, width: int, axes: int
) -> ir.Model:
    """Keep the best-ranked visual tokens, in their order, and finish the graph.

    Rather than sorted, the kept rows are counted: how many kept places lie before a row's place is
    where it goes.
    """
    zero = tape.constant(np.array([0], np.int64))
    if by_attention:
        relevance = tape.op("Div", scores, tape.op("ReduceSum", scores, zero, keepdims=1))
    else:
        relevance = tape.op("Softmax", scores, axis=-1)
    best = tape.tape.op_multi_out(
        "TopK", [scores, prompt.keep], {"axis": 0, "largest": 1, "sorted": 0}, num_outputs=2
    )[1]
    counting = tape.constant(np.arange(MOST_TOKENS, dtype=np.int64))
    visual, rows = _count(tape, prompt.visual), _count(tape, prompt.places)
    text = tape.op("Slice", counting, visual, rows, zero)
    chosen = tape.op("Concat", best, text, axis=0)
    places = tape.op("Gather", prompt.places, chosen, axis=0)
    each = tape.op("ConstantOfShape", tape.op("Shape", chosen), value=_integer(1))
    none = tape.op("ConstantOfShape", rows, value=_integer(0))
    marks = tape.op("ScatterElements", none, places, each, axis=0)
    before = tape.op("CumSum", marks, tape.constant(np.int64(0)), exclusive=1)
    slots = tape.op("Gather", before, places, axis=0)
    kept = tape.op("ScatterElements", chosen, slots, chosen, axis=0)

    embeds = tape.op("Unsqueeze", prompt.embeds, zero)
    return tape.model(
        "compressor",
        {
            "inputs_embeds": (
                tape.op("Gather", embeds, kept, axis=1), tape.dtype, [1, "kept_prompt", width],
            ),
            "kept_position_ids": (
                tape.op("Gather", prompt.positions, kept, axis=0), INT64, ["kept_prompt", axes],
            ),
            "kept_rows": (kept, INT64, ["kept_prompt"]),
            "relevance": (relevance, FLOAT, ["visual"]),
            "scores": (scores, FLOAT, ["visual"]),
        },
    )  # fmt: skip


def _count(tape: GraphTape, value: ir.Value) -> ir.Value:
    """The length of a value's first axis, int64 [1] in host memory."""
    return tape.op("Shape", value, start=0, end=1)


def _integer(number: int) -> ir.TensorProtocol:
    """What ConstantOfShape repeats, an int64."""
    return ir.tensor(np.array([number], np.int64))
