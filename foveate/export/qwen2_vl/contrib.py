"""Qwen2-VL's graphs in onnxruntime's fused operators: one attention kernel a layer, a cache in place."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

from foveate.errors import CheckpointError, ExportError
from foveate.export.contrib.graph_builder import FUSED, GraphTape
from foveate.export.contrib.selection import pool, prompt_inputs, rank, select
from foveate.export.qwen2_vl.plans import facts
from foveate.families.qwen2_vl import Settings, read_settings
from foveate.modeling.f_theta import FTheta
from foveate.runtime.language.base import state_names

FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
INT32, INT64, UINT8 = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8
MOST_THREADS = 1024


def fused(
    model: Qwen2VLForConditionalGeneration,
    network: FTheta | None,
    preprocessing: Mapping[str, Any],
) -> dict[str, Callable[[], ir.Model]]:
    """How each graph is made of onnxruntime's own operators, by role.

    Raises:
        BundleError: Preprocessing settings that are wrong.
    """
    settings = read_settings(preprocessing)
    return {
        "vision": lambda: vision(model, settings),
        "merge": lambda: merge(model),
        "compressor": lambda: compressor(model, network),
        "decoder": lambda: decoder(model),
    }


def vision(model: Qwen2VLForConditionalGeneration, settings: Settings) -> ir.Model:
    """The vision encoder of one picture or video: 8-bit levels to visual tokens.

    Takes `levels` uint8 [T, F, runs, P · 3], the pixels of each frame as runs of P, row of pixels
    after row of pixels (F is 1 for a picture, which then fills all frames of a patch);
    `position_ids` int64 [patches of a frame, 2], (row, column) of each patch in token order;
    `columns` int64 [1], runs in a row of pixels; and `lengths` int32 [T], how many patches of each
    step in time are real. The others only fill up: no real one looks at them, and runs that no
    patch is at are not read. Gives `visual_embeds` [N_v, H], also of what fills up.

    Raises:
        ExportError: An activation that the fused operators lack.
    """
    tower, config = model.model.visual, model.config.vision_config
    if config.hidden_act != "quick_gelu":
        raise ExportError(
            f"the vision tower's activation {config.hidden_act} has no fused operator; "
            "export with --operators standard"
        )
    tape = GraphTape(model.dtype)
    patch, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    levels = tape.input("levels", UINT8, ["times", "frames", "runs", patch * 3])
    places = tape.input("position_ids", INT64, ["patches", 2])
    columns = tape.input("columns", INT64, [1])
    lengths = tape.input("lengths", INT32, ["times"])

    runs = _runs(tape, places, columns, patch)
    hidden = tape.linear(
        _patches(tape, levels, runs, settings, frames, patch), "patch_embed",
        _patch_weight(tower).permute(0, 2, 3, 4, 1).flatten(1), None,
    )  # fmt: skip
    depth = config.embed_dim // config.num_heads
    group = _heads_together(config.num_heads, depth)
    cos, sin = _vision_rotary(tape, places, depth, group)
    start = tape.constant(np.zeros(1, np.int64))
    block = tower.blocks[0]
    normed = tape.op(
        "LayerNormalization", hidden,
        tape.weight("blocks.0.norm1.weight", block.norm1.weight),
        tape.weight("blocks.0.norm1.bias", block.norm1.bias),
        axis=-1, epsilon=block.norm1.eps,
    )  # fmt: skip
    for number, block in enumerate(tower.blocks):
        name = f"blocks.{number}"
        weights, biases = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
        query, key = (
            tape.fused(
                "RotaryEmbedding",
                tape.linear(
                    normed, f"{name}.attn.{part}",
                    interleaved(weight, depth), interleaved(bias, depth),
                ),
                start, cos, sin, num_heads=config.num_heads // group, interleaved=1,
            )
            for part, weight, bias in zip("qk", weights, biases, strict=False)
        )  # fmt: skip
        value = tape.linear(normed, f"{name}.attn.v", weights[2], None)
        attended = _attention(tape, query, key, value, lengths, config.num_heads)
        projection = block.attn.proj
        attended = tape.linear(attended, f"{name}.attn.proj", projection.weight, None)
        # Attention weights sum to 1, so the values' bias passes through them as it is.
        carried = projection.weight.float() @ biases[2].float() + projection.bias.float()
        bias = tape.weight(f"{name}.attn.proj.bias", carried.to(projection.bias.dtype))
        normed, hidden = tape.skip_layer_norm(hidden, attended, f"{name}.norm2", block.norm2, bias)
        wide = tape.linear(normed, f"{name}.mlp.fc1", block.mlp.fc1.weight, block.mlp.fc1.bias)
        wide = tape.fused("QuickGelu", wide, alpha=1.702)
        narrow = tape.linear(wide, f"{name}.mlp.fc2", block.mlp.fc2.weight, None)
        bias = tape.weight(f"{name}.mlp.fc2.bias", block.mlp.fc2.bias)
        last = number + 1 == len(tower.blocks)
        norm = tower.merger.ln_q if last else tower.blocks[number + 1].norm1
        label = "merger.ln_q" if last else f"blocks.{number + 1}.norm1"
        normed, hidden = tape.skip_layer_norm(hidden, narrow, label, norm, bias)

    shape = tape.constant(np.array([-1, config.embed_dim * merge**2], np.int64))
    grouped = tape.op("Reshape", normed, shape)
    first, second = tower.merger.mlp[0], tower.merger.mlp[2]
    grouped = tape.linear(grouped, "merger.mlp.0", first.weight, first.bias)
    grouped = tape.fused("Gelu", grouped)
    visual = tape.linear(grouped, "merger.mlp.2", second.weight, second.bias)
    width = model.config.text_config.hidden_size
    return tape.model("vision", {"visual_embeds": (visual, tape.dtype, ["visual", width])})


def decoder(model: Qwen2VLForConditionalGeneration) -> ir.Model:
    """The language model over a cache of fixed length that it writes in place.

    Takes `inputs_embeds` [B, S, H]; `position_ids` int64 [R, A], the rotary positions by slot of
    the cache, in all rows the same, R ≥ total_sequence_length; `seqlens_k` int32 [B], tokens in each
    row of the cache after this step less one; `total_sequence_length` int32 [1] in host memory: S
    for a first prompt, else up to where the cache may be filled; `last` int64 [1], the token whose
    successor is wanted; and the cache, `past.N.key` and `past.N.value` [B, kv_heads, C, head_dim],
    given back as `present`, which may be the same memory. Gives `logits` float32 [B, V], and `best`
    int64 [B], the token with the highest.
    """
    text, config = model.model.language_model, model.config.text_config
    tape = GraphTape(model.dtype)
    sizes = facts(model)
    width, heads, groups, depth = sizes.hidden_size, sizes.heads, sizes.kv_heads, sizes.head_dim
    hidden = tape.input("inputs_embeds", tape.dtype, ["batch", "sequence", width])
    positions = tape.input("position_ids", INT64, ["slots", 3])
    seen = tape.input("seqlens_k", INT32, ["batch"])
    total = tape.input("total_sequence_length", INT32, [1])
    last = tape.input("last", INT64, [1])
    past = {
        name: tape.input(f"past.{name}", tape.dtype, ["batch", groups, "capacity", depth])
        for name in state_names(sizes.layers)
    }
    cos, sin = _turns(tape, _text_angles(tape, positions, config, depth))

    outputs: dict[str, tuple[ir.Value, ir.DataType, list[int | str]]] = {}
    norm = text.layers[0].input_layernorm
    normed = tape.rms_norm(hidden, "layers.0.input_layernorm", norm, norm.weight)
    for number, layer in enumerate(text.layers):
        name, attention, mlp = f"layers.{number}", layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        packed = tape.linear(
            normed, f"{name}.qkv",
            torch.cat([part.weight for part in projections]),
            torch.cat([part.bias for part in projections]),
        )  # fmt: skip
        attended, key, value = tape.tape.op_multi_out(
            "GroupQueryAttention",
            [
                packed,
                None,
                None,
                past[f"{number}.key"],
                past[f"{number}.value"],
                seen,
                total,
                cos,
                sin,
            ],
            {"num_heads": heads, "kv_num_heads": groups, "do_rotary": 1, "scale": depth**-0.5},
            num_outputs=3,
            domain=FUSED,
        )
        for kind, state in (("key", key), ("value", value)):
            shape: list[int | str] = ["batch", groups, "capacity", depth]
            outputs[f"present.{number}.{kind}"] = (state, tape.dtype, shape)
        if number + 1 == len(text.layers):
            attended, hidden = (
                tape.op("Gather", rows, last, axis=1) for rows in (attended, hidden)
            )
        attended = tape.linear(attended, f"{name}.o_proj", attention.o_proj.weight, None)
        normed, hidden = tape.skip_rms_norm(
            hidden, attended, f"{name}.post_attention_layernorm", layer.post_attention_layernorm
        )
        gate = tape.linear(normed, f"{name}.gate_proj", mlp.gate_proj.weight, None)
        up = tape.linear(normed, f"{name}.up_proj", mlp.up_proj.weight, None)
        wide = tape.op("Mul", tape.fused("QuickGelu", gate, alpha=1.0), up)
        narrow = tape.linear(wide, f"{name}.down_proj", mlp.down_proj.weight, None)
        final = number + 1 == len(text.layers)
        norm = text.norm if final else text.layers[number + 1].input_layernorm
        label = "norm" if final else f"layers.{number + 1}.input_layernorm"
        normed, hidden = tape.skip_rms_norm(hidden, narrow, label, norm)

    rows = tape.op("Reshape", normed, tape.constant(np.array([-1, width], np.int64)))
    logits = tape.cast(tape.linear(rows, "lm_head", model.lm_head.weight, None), FLOAT)
    best = tape.op("ArgMax", logits, axis=1, keepdims=0)
    return tape.model(
        "decoder",
        {
            "logits": (logits, FLOAT, ["batch", config.vocab_size]),
            "best": (best, INT64, ["batch"]),
            **outputs,
        },
    )


def compressor(model: Qwen2VLForConditionalGeneration, network: FTheta | None) -> ir.Model:
    """Probe, f_θ, top-k and gather, over the visual tokens' rows and then the text's.

    Takes `visual_embeds` [N_v, H]; `text_embeds` [N_t, H]; by row `places` int64 [N] in the prompt and
    `position_ids` int64 [N, A]; the instruction's rows and what each counts, `instruction_rows` int64 [N_u]
    and `instruction_weights` float32 [N_u]; and `keep` int64 [1] in host memory. Gives `inputs_embeds`
    [1, K + N_t, H], `kept_position_ids` int64 [K + N_t, A] and `kept_rows` int64 [K + N_t], all in the
    prompt's order, and `relevance` and `scores` float32 [N_v].

    Queries and keys are projected in float16 where the model is of 16 bits, and sum up in float32; their
    biases, which can be large, are added in float32. So are attention and f_θ computed, on CUDA with
    products of TF32, as exact as float16 and with float32's range.
    """
    text, config = model.model.language_model, model.config.text_config
    tape = GraphTape(model.dtype)
    sizes = facts(model)
    width, heads, groups, depth = sizes.hidden_size, sizes.heads, sizes.kv_heads, sizes.head_dim
    attention = text.layers[0].self_attn
    prompt = prompt_inputs(tape, width, 3)
    normed, projecting = _probe_norm(tape, prompt.embeds, text.layers[0].input_layernorm)
    angles = _text_angles(tape, prompt.positions, config, depth)
    turns = tape.op("Cos", angles), tape.op("Sin", angles)
    asked = tape.op("Gather", normed, prompt.asked, axis=0)
    first = tape.constant(np.zeros(1, np.int64))

    def rotated(rows: ir.Value, name: str, layer: nn.Linear, places: ir.Value) -> ir.Value:
        """Rows [N, H] projected, and turned by their angles, float32 [1, N, heads · depth]."""
        states = tape.linear(rows, name, layer.weight.to(projecting), None)
        bias = tape.weight(f"{name}.bias", layer.bias.float())
        states = tape.op("Add", tape.cast(states, FLOAT), bias)
        states = tape.op("Unsqueeze", states, first)
        return tape.fused(
            "RotaryEmbedding", states, places, *turns, num_heads=layer.weight.shape[0] // depth
        )

    def split(states: ir.Value, shape: list[int], order: list[int]) -> ir.Value:
        """Heads to the front."""
        apart = tape.op("Reshape", states, tape.constant(np.array(shape, np.int64)))
        return tape.op("Transpose", apart, perm=order)

    asked_rows = tape.op("Unsqueeze", prompt.asked, first)
    query = rotated(asked, "q_proj", attention.q_proj, asked_rows)
    query = split(query, [-1, heads, depth], [1, 0, 2])
    query = tape.op("Reshape", query, tape.constant(np.array([groups, -1, depth], np.int64)))
    key = rotated(normed, "k_proj", attention.k_proj, first)
    key = split(key, [-1, groups, depth], [1, 2, 0])
    scores = tape.op("Mul", tape.op("MatMul", query, key), tape.constant(np.float32(depth**-0.5)))
    hidden = tape.op(
        "Less",
        tape.op(
            "Unsqueeze",
            tape.op("Gather", prompt.places, prompt.asked, axis=0),
            tape.constant(np.array([1], np.int64)),
        ),
        tape.op("Unsqueeze", prompt.places, first),
    )
    scores = tape.op("Reshape", scores, tape.constant(np.array([heads, -1, 0], np.int64)))
    scores = tape.op("Where", hidden, tape.constant(np.float32(-np.inf)), scores)
    weights = tape.op("Softmax", scores, axis=-1)
    channels = 1 if network is None else network.channels_in
    if channels not in (1, heads):
        raise CheckpointError(
            f"this f_θ reads {channels} heads and the model has {heads}; "
            "train one on this checkpoint (foveate calibrate train)"
        )
    ranked = rank(tape, pool(tape, prompt, weights, heads, channels), prompt, network)
    return select(tape, prompt, ranked, network is None, width, 3)


def _probe_norm(tape: GraphTape, embeds: ir.Value, norm: Any) -> tuple[ir.Value, torch.dtype]:
    """Rows normalised for the first layer, and the type that they have."""
    if tape.dtype == BFLOAT16:
        wide = tape.rms_norm(tape.cast(embeds, FLOAT), "norm", norm, norm.weight.float())
        return tape.cast(wide, FLOAT16), torch.float16
    return tape.rms_norm(embeds, "norm", norm, norm.weight), norm.weight.dtype


def merge(model: Qwen2VLForConditionalGeneration) -> ir.Model:
    """Text and visual rows to the whole prompt [1, T, H]; `order` int64 [T] are rows of both together."""
    tape = GraphTape(model.dtype)
    width = model.config.text_config.hidden_size
    text = tape.input("text_embeds", tape.dtype, ["text", width])
    visual = tape.input("visual_embeds", tape.dtype, ["visual", width])
    order = tape.input("order", INT64, ["prompt"])
    rows = tape.op("Gather", tape.op("Concat", text, visual, axis=0), order, axis=0)
    whole = tape.op("Unsqueeze", rows, tape.constant(np.zeros(1, np.int64)))
    return tape.model("merge", {"inputs_embeds": (whole, tape.dtype, [1, "prompt", width])})


def _patch_weight(tower: nn.Module) -> Tensor:
    """The patch embedding's weight [C, 3, frames, P, P], whether it is still a convolution or not."""
    embed: Any = tower.patch_embed
    weight: Tensor = getattr(embed, "proj", embed).weight
    return weight


def _runs(tape: GraphTape, places: ir.Value, columns: ir.Value, patch: int) -> ir.Value:
    """Which runs of pixels make up each patch, int64 [patches, P]."""
    row, column = tape.split(places, 2, axis=1)
    first = tape.op("Mul", row, tape.constant(np.array([patch], np.int64)))
    rows = tape.op("Add", first, tape.constant(np.arange(patch, dtype=np.int64)))
    return tape.op("Add", tape.op("Mul", rows, columns), column)


def _patches(
    tape: GraphTape, levels: ir.Value, runs: ir.Value, settings: Settings, frames: int, patch: int
) -> ir.Value:
    """Normalised patches [T, patches of a frame, frames · P · P · 3] of 8-bit levels."""
    blocks = tape.op("Transpose", tape.op("Gather", levels, runs, axis=2), perm=[0, 2, 1, 3, 4])
    shape = np.array([1, 1, frames, 1, 1], np.int64)
    blocks = tape.op("Expand", blocks, tape.constant(shape))
    width = frames * patch * patch * 3
    rows = tape.op("Reshape", blocks, tape.constant(np.array([0, -1, width], np.int64)))
    mean, std = (np.array(one, np.float64) for one in (settings.image_mean, settings.image_std))
    scale = np.tile(settings.rescale_factor / std, width // 3).astype(np.float32)
    shift = np.tile(-mean / std, width // 3).astype(np.float32)
    scaled = tape.op("Mul", tape.cast(rows, FLOAT), tape.constant(scale))
    return tape.cast(tape.op("Add", scaled, tape.constant(shift)), tape.dtype)


def interleaved(rows: Tensor, depth: int) -> Tensor:
    """Rows [heads · depth, …] with the halves of each head interleaved: pairs that turn stand together.

    Queries and keys so reordered alike have the same products.
    """
    halves = rows.reshape(-1, 2, depth // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _heads_together(heads: int, depth: int) -> int:
    """How many heads the rotary kernel may take as one: a block of threads is as wide as a head."""
    return max(n for n in range(1, heads + 1) if heads % n == 0 and n * depth <= MOST_THREADS)


def _vision_rotary(
    tape: GraphTape, places: ir.Value, depth: int, group: int
) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines [patches, group · depth / 2] of each patch's row, then column, for each head."""
    quarter = depth // 4
    rates = (1 / 10000 ** (np.arange(quarter, dtype=np.float32) / np.float32(quarter)))[None, None]
    spread = tape.op("Unsqueeze", tape.cast(places, FLOAT), tape.constant(np.array([2], np.int64)))
    angles = tape.op("Mul", spread, tape.constant(rates.astype(np.float32)))
    shape = tape.constant(np.array([-1, depth // 2], np.int64))
    angles = tape.op("Reshape", angles, shape)
    return _turns(tape, tape.op("Tile", angles, tape.constant(np.array([1, group], np.int64))))


def _text_angles(tape: GraphTape, positions: ir.Value, config: Any, depth: int) -> ir.Value:
    """Angles float32 [N, depth / 2] of m-rope positions [N, 3]: each section turns by its own axis."""
    rope = config.rope_parameters
    axes = np.repeat(np.arange(3, dtype=np.int64), rope["mrope_section"])
    powers = np.arange(0, depth, 2, dtype=np.float32) / np.float32(depth)
    rates = (1 / np.float32(rope["rope_theta"]) ** powers).astype(np.float32)
    chosen = tape.op("Gather", positions, tape.constant(axes), axis=1)
    return tape.op("Mul", tape.cast(chosen, FLOAT), tape.constant(rates))


def _turns(tape: GraphTape, angles: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines of angles, computed in float32."""
    return (
        tape.cast(tape.op("Cos", angles), tape.dtype),
        tape.cast(tape.op("Sin", angles), tape.dtype),
    )


def _attention(
    tape: GraphTape,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    lengths: ir.Value,
    heads: int,
) -> ir.Value:
    """Attention of every patch of a frame to the first `lengths` of it, those that are real.

    onnxruntime has no kernel of it for bfloat16.
    """
    states = [query, key, value]
    if tape.dtype == BFLOAT16:
        states = [tape.cast(state, FLOAT16) for state in states]
    attended = tape.fused("MultiHeadAttention", *states, None, lengths, num_heads=heads)
    return tape.cast(attended, BFLOAT16) if tape.dtype == BFLOAT16 else attended
