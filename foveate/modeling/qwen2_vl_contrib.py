"""Qwen2-VL's vision tower in onnxruntime's contrib operators."""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration as Model

from foveate.errors import ExportError
from foveate.families.qwen2_vl_settings import Settings, read_preprocessing
from foveate.modeling.graph_builder import (
    FLOAT,
    INT32,
    INT64,
    UINT8,
    GraphBuilder,
)
from foveate.modeling.rope import rates

MOST_THREADS = 1024


def vision_graph(model: Model, preprocessing: Mapping[str, Any]) -> ir.Model:
    """The vision encoder of one picture or video: 8-bit levels to visual tokens.

    Takes `levels` uint8 [T, F, runs, P · 3], the pixels of each frame as runs of P, row of pixels
    after row of pixels (F is 1 for a picture, which then fills all frames of a patch);
    `position_ids` int64 [patches of a frame, 2], (row, column) of each patch in token order;
    `columns` int64 [1], runs in a row of pixels; and `lengths` int32 [T], how many patches of each
    step in time are real. The others are padding: no real one attends to them, and runs that no patch
    is at are not read. Gives `visual_embeds` [N_v, H], padding included.

    Args:
        model: The weights.
        preprocessing: What `families.settings_from_checkpoint` gave.

    Raises:
        BundleError: Settings that are wrong.
        ExportError: An activation that the contrib operators lack.
    """
    settings = read_preprocessing(preprocessing)
    tower, config = model.model.visual, model.config.vision_config
    if config.hidden_act != "quick_gelu":
        raise ExportError(
            f"the vision tower's activation {config.hidden_act} has no contrib operator; "
            "export with --operators standard"
        )
    graph = GraphBuilder(model.dtype)
    patch, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    levels = graph.input("levels", UINT8, ["times", "frames", "runs", patch * 3])
    places = graph.input("position_ids", INT64, ["patches", 2])
    columns = graph.input("columns", INT64, [1])
    lengths = graph.input("lengths", INT32, ["times"])

    runs = _runs(graph, places, columns, patch)
    hidden = graph.linear(
        _patches(graph, levels, runs, settings, frames, patch), "patch_embed",
        tower.patch_embed.proj.weight.permute(0, 2, 3, 4, 1).flatten(1), None,
    )  # fmt: skip
    depth = config.embed_dim // config.num_heads
    # The rotary kernel may take several heads as one: a block of threads is as wide as a head.
    divisors = [n for n in range(1, config.num_heads + 1) if config.num_heads % n == 0]
    group = max(n for n in divisors if n * depth <= MOST_THREADS)
    cos, sin = _vision_rotary(graph, places, tower.rotary_pos_emb, group)
    block = tower.blocks[0]
    normed = graph.op(
        "LayerNormalization", hidden,
        graph.weight("blocks.0.norm1.weight", block.norm1.weight),
        graph.weight("blocks.0.norm1.bias", block.norm1.bias),
        axis=-1, epsilon=block.norm1.eps,
    )  # fmt: skip
    for number, block in enumerate(tower.blocks):
        name = f"blocks.{number}"
        weights, biases = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
        states = [
            graph.contrib(
                "RotaryEmbedding",
                graph.linear(
                    normed, f"{name}.attn.{part}",
                    interleaved(weight, depth), interleaved(bias, depth),
                ),
                [0], cos, sin, num_heads=config.num_heads // group, interleaved=1,
            )
            for part, weight, bias in zip("qk", weights, biases, strict=False)
        ]  # fmt: skip
        states.append(graph.linear(normed, f"{name}.attn.v", weights[2], None))
        attended = graph.attention(states, config.num_heads, lengths)
        projection = block.attn.proj
        attended = graph.linear(attended, f"{name}.attn.proj", projection.weight, None)
        # Attention weights sum to 1, so the values' bias passes through them as it is.
        carried = projection.weight.float() @ biases[2].float() + projection.bias.float()
        bias = graph.weight(f"{name}.attn.proj.bias", carried.to(projection.bias.dtype))
        normed, hidden = graph.skip_layer_norm(hidden, attended, f"{name}.norm2", block.norm2, bias)
        wide = graph.layer(normed, f"{name}.mlp.fc1", block.mlp.fc1)
        wide = graph.contrib("QuickGelu", wide, alpha=1.702)
        narrow = graph.linear(wide, f"{name}.mlp.fc2", block.mlp.fc2.weight, None)
        bias = graph.weight(f"{name}.mlp.fc2.bias", block.mlp.fc2.bias)
        if number + 1 < len(tower.blocks):
            label, norm = f"blocks.{number + 1}.norm1", tower.blocks[number + 1].norm1
        else:
            label, norm = "merger.ln_q", tower.merger.ln_q
        normed, hidden = graph.skip_layer_norm(hidden, narrow, label, norm, bias)

    grouped = graph.op("Reshape", normed, [-1, config.embed_dim * merge**2])
    grouped = graph.contrib("Gelu", graph.layer(grouped, "merger.mlp.0", tower.merger.mlp[0]))
    visual = graph.layer(grouped, "merger.mlp.2", tower.merger.mlp[2])
    width = model.config.text_config.hidden_size
    return graph.model("vision", {"visual_embeds": (visual, graph.dtype, ["visual", width])})


def _runs(graph: GraphBuilder, places: ir.Value, columns: ir.Value, patch: int) -> ir.Value:
    """Which runs of pixels make up each patch, int64 [patches, P]."""
    row, column = graph.outputs("Split", [places], 2, axis=1, num_outputs=2)
    rows = graph.op("Add", graph.op("Mul", row, [patch]), [*range(patch)])
    return graph.op("Add", graph.op("Mul", rows, columns), column)


def _patches(
    graph: GraphBuilder,
    levels: ir.Value,
    runs: ir.Value,
    settings: Settings,
    frames: int,
    patch: int,
) -> ir.Value:
    """Normalised patches [T, patches of a frame, frames · P · P · 3] of 8-bit levels."""
    blocks = graph.op("Transpose", graph.op("Gather", levels, runs, axis=2), perm=[0, 2, 1, 3, 4])
    blocks = graph.op("Expand", blocks, [1, 1, frames, 1, 1])
    width = frames * patch * patch * 3
    rows = graph.op("Reshape", blocks, [0, -1, width])
    factor, mean, std = settings.rescale_factor, settings.image_mean, settings.image_std
    return graph.normalised(rows, factor, mean, std, width // 3)


def interleaved(rows: Tensor, depth: int) -> Tensor:
    """Rows [heads · depth, …] with the halves of each head interleaved: pairs that turn stand together.

    Queries and keys so reordered alike have the same products.
    """
    halves = rows.reshape(-1, 2, depth // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _vision_rotary(
    graph: GraphBuilder, places: ir.Value, rotary: nn.Module, group: int
) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines [patches, group · depth / 2] of each patch's row, then column, for each head."""
    turning, _ = rates(rotary)
    spread = graph.op("Unsqueeze", graph.cast(places, FLOAT), [2])
    angles = graph.op("Mul", spread, turning.numpy()[None, None])
    angles = graph.op("Reshape", angles, [-1, 2 * len(turning)])
    return graph.rotation(graph.op("Tile", angles, [1, group]))
