"""The compressor's second half in few operators, all on the device: f_θ, top-k, and the kept prompt."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from foveate.calibration.f_theta import EPSILON, KERNEL, FTheta
from foveate.export.fused.tape import GraphTape

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
MOST_TOKENS = 1 << 16


@dataclass(frozen=True, slots=True)
class Prompt:
    """The compressor's inputs as the graph has them.

    Attributes:
        text: [N_t, H], `visual`: [N_v, H], `embeds`: both, [N_t + N_v, H].
        text_index: int64 [N_t], `visual_index`: int64 [N_v], `index`: both, places in the prompt.
        rows: int64 [N_u], the instruction's among the text's.
        weights: float32 [N_u], what each counts in the mean; 0 for one that only fills up.
        positions: int64 [A, N_t + N_v], of the prompt.
        keep: int64 [1], in host memory.
    """

    text: ir.Value
    visual: ir.Value
    embeds: ir.Value
    text_index: ir.Value
    visual_index: ir.Value
    index: ir.Value
    rows: ir.Value
    weights: ir.Value
    positions: ir.Value
    keep: ir.Value


def prompt_inputs(tape: GraphTape, width: int, axes: int) -> Prompt:
    """The inputs that every family's compressor takes, in their order.

    They are those of `foveate.export.compressor` and `instruction_weights`. Rows of text may follow that
    only fill up: their places come after the prompt, so no token looks at them and they end up last.
    """
    text = tape.input("text_embeds", tape.dtype, ["text", width])
    visual = tape.input("visual_embeds", tape.dtype, ["visual", width])
    text_index = tape.input("text_index", INT64, ["text"])
    visual_index = tape.input("visual_index", INT64, ["visual"])
    rows = tape.input("instruction_rows", INT64, ["instruction"])
    weights = tape.input("instruction_weights", FLOAT, ["instruction"])
    positions = tape.input("position_ids", INT64, [axes, "prompt"])
    keep = tape.input("keep", INT64, [1])
    return Prompt(
        text=text,
        visual=visual,
        embeds=tape.op("Concat", text, visual, axis=0),
        text_index=text_index,
        visual_index=visual_index,
        index=tape.op("Concat", text_index, visual_index, axis=0),
        rows=rows,
        weights=weights,
        positions=positions,
        keep=keep,
    )


def pool(
    tape: GraphTape, prompt: Prompt, attention: ir.Value, heads: int, channels: int
) -> ir.Value:
    """Attention float32 [heads, N_u, N_t + N_v] averaged, of visual tokens alone: [channels, N_v].

    Args:
        tape: Where to record it.
        prompt: Whose instruction's weights are those of the mean.
        attention: From each instruction token to text, then visual tokens.
        heads: How many heads it has.
        channels: 1 averages over heads too; else as many as there are heads.
    """
    share = tape.op("Unsqueeze", prompt.weights, tape.constant(np.array([1], np.int64)))
    if channels == 1:
        share = tape.op("Mul", share, tape.constant(np.float32(1 / heads)))
    axes = tape.constant(np.array([0, 1] if channels == 1 else [1], np.int64))
    mean = tape.op("ReduceSum", tape.op("Mul", attention, share), axes, keepdims=1)
    mean = tape.op("Reshape", mean, tape.constant(np.array([channels, -1], np.int64)))
    text = tape.op("Shape", prompt.text_index)
    ends = tape.constant(np.array([np.iinfo(np.int64).max], np.int64))
    return tape.op("Slice", mean, text, ends, tape.constant(np.array([1], np.int64)))


def rank(tape: GraphTape, pooled: ir.Value, prompt: Prompt, network: FTheta | None) -> ir.Value:
    """What tokens are ranked by, float32 [N_v]: f_θ's logits, or A_v⁰ itself."""
    flat = tape.constant(np.array([-1], np.int64))
    if network is None:
        return tape.op("Reshape", pooled, flat)
    if network.scaling == "log":
        count = count_on_device(tape, prompt.visual_index)
        scaled = tape.op("Mul", pooled, tape.cast(count, FLOAT))
        pooled = tape.op("Log", tape.op("Add", scaled, tape.constant(np.float32(EPSILON))))
    # Each convolution is one product of every token's neighbourhood, which tensor cores take.
    zero, one = (tape.constant(np.array([n], np.int64)) for n in (0, 1))
    counting = tape.constant(np.arange(MOST_TOKENS, dtype=np.int64))
    token = tape.op("Slice", counting, zero, tape.op("Shape", prompt.visual_index), zero)
    offsets = tape.constant(np.arange(KERNEL, dtype=np.int64))
    near = tape.op("Add", tape.op("Unsqueeze", token, one), offsets)
    around = tape.constant(np.array([KERNEL // 2, 0, KERNEL // 2, 0], np.int64))
    hidden = tape.op("Transpose", pooled, perm=[1, 0])
    for number, (weight, bias) in enumerate(network.merged()):
        rows = tape.op("Gather", tape.op("Pad", hidden, around), near, axis=0)
        shape = tape.constant(np.array([-1, KERNEL * weight.shape[1]], np.int64))
        flat_weight = weight.transpose(1, 2).flatten(1)
        rows = tape.op("Reshape", rows, shape)
        hidden = tape.op("Relu", tape.linear(rows, f"f_theta.{number}", flat_weight, bias))
    head = network.head
    logits = tape.linear(hidden, "f_theta.head", head.weight[..., 0], head.bias)
    return tape.op("Reshape", logits, flat)


def select(
    tape: GraphTape, prompt: Prompt, scores: ir.Value, by_attention: bool, width: int, axes: int
) -> ir.Model:
    """Keep the best-ranked visual tokens, in their order, and finish the graph."""
    if by_attention:
        total = tape.op("ReduceSum", scores, tape.constant(np.array([0], np.int64)), keepdims=1)
        relevance = tape.op("Div", scores, total)
    else:
        relevance = tape.op("Softmax", scores, axis=-1)

    best = tape.tape.op_multi_out(
        "TopK", [scores, prompt.keep], {"axis": 0, "largest": 1, "sorted": 0}, num_outputs=2
    )[1]
    rising = tape.tape.op_multi_out(
        "TopK", [tape.cast(best, FLOAT), prompt.keep], {"axis": 0, "largest": 0}, num_outputs=2
    )[0]
    kept = tape.cast(rising, INT64)

    zero, one = (tape.constant(np.array([n], np.int64)) for n in (0, 1))
    counting = tape.constant(np.arange(MOST_TOKENS, dtype=np.int64))
    text_shape = tape.op("Shape", prompt.text_index)
    text_order = tape.op("Slice", counting, zero, text_shape, zero)
    kept_order = tape.op("Slice", counting, zero, prompt.keep, zero)
    kept_index = tape.op("Gather", prompt.visual_index, kept, axis=0)
    before = tape.op(
        "Less",
        tape.op("Unsqueeze", kept_index, zero),
        tape.op("Unsqueeze", prompt.text_index, one),
    )
    passed = tape.op("ReduceSum", tape.cast(before, FLOAT), one, keepdims=0)
    text_places = tape.op("Add", text_order, tape.cast(passed, INT64))
    kept_places = tape.op("Add", tape.op("Sub", kept_index, kept), kept_order)

    places = tape.op("Concat", text_places, kept_places, axis=0)
    sources = tape.op(
        "Concat", text_order, tape.op("Add", kept, count_on_device(tape, prompt.text_index)), axis=0
    )
    order = tape.op("ScatterElements", _zeros(tape, places), places, sources, axis=0)
    rows = tape.op("Unsqueeze", tape.op("Gather", prompt.embeds, order, axis=0), zero)
    columns = tape.op("Gather", prompt.index, order, axis=0)
    positions = tape.op("Unsqueeze", tape.op("Gather", prompt.positions, columns, axis=1), one)
    return tape.model(
        "compressor",
        {
            "inputs_embeds": (rows, tape.dtype, [1, "kept_prompt", width]),
            "kept_position_ids": (positions, INT64, [axes, 1, "kept_prompt"]),
            "kept_indices": (kept, INT64, ["kept"]),
            "relevance": (relevance, FLOAT, ["visual"]),
            "scores": (scores, FLOAT, ["visual"]),
        },
    )


def count_on_device(tape: GraphTape, index: ir.Value) -> ir.Value:
    """The length of `index`, int64 [1], counted where it lies: the Shape operator's answer is in host memory."""
    ones = tape.op("Add", _zeros(tape, index), tape.constant(np.int64(1)))
    return tape.op("ReduceSum", ones, tape.constant(np.array([0], np.int64)), keepdims=1)


def _zeros(tape: GraphTape, like: ir.Value) -> ir.Value:
    """As many int64 zeros as `like` has elements."""
    return tape.op("Mul", like, tape.constant(np.int64(0)))
