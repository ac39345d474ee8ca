"""The compressor graph in contrib operators: probe, f_θ, top-k and gather."""

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from foveate.bundle.manifest import ModelFacts
from foveate.export.contrib.rotary import rotary_tables
from foveate.export.contrib.selection import SelectionBuilder
from foveate.modeling.graph_builder import BFLOAT16, FLOAT, FLOAT16, GraphBuilder, Input
from foveate.modeling.language_model import Language
from foveate.modeling.ranker import Ranker


def compressor(
    language: Language, facts: ModelFacts, ranker: Ranker, dtype: torch.dtype
) -> ir.Model:
    """Probe, f_θ, top-k and gather, over the visual tokens and then the text.

    Takes `visual_embeds` [N_v, H]; `text_embeds` [N_t, H]; of both `places` int64 [N] in the prompt and
    `position_ids` int64 [N, A]; which of them are the instruction and what each counts,
    `instruction_rows` int64 [N_u] and `instruction_weights` float32 [N_u]; and `keep` int64 [1] in host
    memory. Gives `inputs_embeds` [1, K + N_t, H], `kept_position_ids` int64 [K + N_t, A] and `kept_rows`
    int64 [K + N_t], all in the prompt's order, and `relevance` and `scores` float32 [N_v].

    Queries and keys are projected in float16 where the model is of 16 bits, and sum up in float32; their
    biases, which can be large, are added in float32. So are attention and f_θ computed, on CUDA with
    products of TF32, as exact as float16 and with float32's range.

    Args:
        language: Its layers are like Llama's; biases may be absent.
        facts: The model's sizes.
        ranker: Weighs the instruction's tokens, and has f_θ where there is one.
        dtype: Of the weights.

    Raises:
        CheckpointError: An f_θ that reads the heads of another model.
    """
    heads, groups, depth = facts.heads, facts.kv_heads, facts.head_dim
    if ranker.network is not None:
        ranker.network.check_heads(heads)
    graph = SelectionBuilder(dtype, facts)
    first: Any = language.layers[0]
    normed, projecting = _probe_norm(graph, graph.embeds, first.input_layernorm)
    rotation = rotary_tables(graph, graph.positions, facts, language.rotary)

    def rotated(value: ir.Value, name: str, layer: nn.Linear, places: Input) -> ir.Value:
        """Tokens [N, H] projected, and turned by their angles, float32 [1, N, heads · depth]."""
        states = graph.linear(value, name, layer.weight.to(projecting), None)
        states = graph.cast(states, FLOAT)
        if layer.bias is not None:
            states = graph.op("Add", states, graph.weight(f"{name}.bias", layer.bias.float()))
        states = graph.op("Unsqueeze", states, [0])
        return graph.contrib(
            "RotaryEmbedding", states, places, *rotation, num_heads=layer.weight.shape[0] // depth
        )

    instruction = graph.op("Gather", normed, graph.instruction, axis=0)
    places = graph.op("Unsqueeze", graph.instruction, [0])
    query = rotated(instruction, "q_proj", first.self_attn.q_proj, places)
    query = graph.op("Reshape", query, [-1, heads, depth])
    query = graph.op("Reshape", graph.op("Transpose", query, perm=[1, 0, 2]), [groups, -1, depth])
    key = rotated(normed, "k_proj", first.self_attn.k_proj, [0])
    key = graph.op("Transpose", graph.op("Reshape", key, [-1, groups, depth]), perm=[1, 2, 0])
    scores = graph.op("Mul", graph.op("MatMul", query, key), np.float32(depth**-0.5))
    own = graph.op("Gather", graph.places, graph.instruction, axis=0)
    unseen = graph.op(
        "Less", graph.op("Unsqueeze", own, [1]), graph.op("Unsqueeze", graph.places, [0])
    )
    scores = graph.op("Reshape", scores, [heads, -1, 0])
    scores = graph.op("Where", unseen, np.float32(-np.inf), scores)
    attention = graph.op("Softmax", scores, axis=-1)
    pooled, network = graph.pool(attention, ranker), ranker.network
    return graph.select(graph.rank(pooled, network), network is None)


def _probe_norm(graph: GraphBuilder, embeds: ir.Value, norm: Any) -> tuple[ir.Value, torch.dtype]:
    """Tokens normalised for the first layer, and the type that they have."""
    if graph.dtype == BFLOAT16:
        wide = graph.rms_norm(graph.cast(embeds, FLOAT), "norm", norm, norm.weight.float())
        return graph.cast(wide, FLOAT16), torch.float16
    return graph.rms_norm(embeds, "norm", norm, norm.weight), norm.weight.dtype
