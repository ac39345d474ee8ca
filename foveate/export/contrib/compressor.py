"""The compressor graph in contrib operators: probe, f_θ, top-k and gather."""

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from foveate.bundle.manifest import ModelFacts
from foveate.errors import CheckpointError
from foveate.export.contrib.rotary import rotary_angles
from foveate.export.contrib.selection import pool, prompt_inputs, rank, select
from foveate.modeling.f_theta import FTheta
from foveate.modeling.graph_builder import GraphBuilder
from foveate.modeling.language_model import Language

FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def compressor(
    language: Language, facts: ModelFacts, network: FTheta | None, dtype: torch.dtype
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
        network: f_θ; None ranks by A_v⁰ itself.
        dtype: Of the weights.

    Raises:
        CheckpointError: An f_θ that reads the heads of another model.
    """
    heads, groups, depth = facts.heads, facts.kv_heads, facts.head_dim
    channels = 1 if network is None else network.channels_in
    if channels not in (1, heads):
        raise CheckpointError(
            f"this f_θ reads {channels} heads and the model has {heads}; "
            "train one on this checkpoint (foveate calibrate train)"
        )
    graph = GraphBuilder(dtype)
    first: Any = language.layers[0]
    prompt = prompt_inputs(graph, facts.hidden_size, facts.rope.axes)
    normed, projecting = _probe_norm(graph, prompt.embeds, first.input_layernorm)
    angles = rotary_angles(graph, prompt.positions, facts)
    rotation = graph.op("Cos", angles), graph.op("Sin", angles)
    zero, one = (graph.constant(np.array([n], np.int64)) for n in (0, 1))

    def rotated(value: ir.Value, name: str, layer: nn.Linear, places: ir.Value) -> ir.Value:
        """Tokens [N, H] projected, and turned by their angles, float32 [1, N, heads · depth]."""
        states = graph.linear(value, name, layer.weight.to(projecting), None)
        states = graph.cast(states, FLOAT)
        if layer.bias is not None:
            states = graph.op("Add", states, graph.weight(f"{name}.bias", layer.bias.float()))
        states = graph.op("Unsqueeze", states, zero)
        return graph.contrib(
            "RotaryEmbedding", states, places, *rotation, num_heads=layer.weight.shape[0] // depth
        )

    def split(states: ir.Value, shape: list[int], order: list[int]) -> ir.Value:
        """Heads to the front."""
        apart = graph.op("Reshape", states, graph.constant(np.array(shape, np.int64)))
        return graph.op("Transpose", apart, perm=order)

    instruction = graph.op("Gather", normed, prompt.instruction, axis=0)
    places = graph.op("Unsqueeze", prompt.instruction, zero)
    query = rotated(instruction, "q_proj", first.self_attn.q_proj, places)
    query = split(query, [-1, heads, depth], [1, 0, 2])
    query = graph.op("Reshape", query, graph.constant(np.array([groups, -1, depth], np.int64)))
    key = rotated(normed, "k_proj", first.self_attn.k_proj, zero)
    key = split(key, [-1, groups, depth], [1, 2, 0])
    scale = graph.constant(np.float32(depth**-0.5))
    scores = graph.op("Mul", graph.op("MatMul", query, key), scale)
    own = graph.op("Gather", prompt.places, prompt.instruction, axis=0)
    unseen = graph.op(
        "Less", graph.op("Unsqueeze", own, one), graph.op("Unsqueeze", prompt.places, zero)
    )
    scores = graph.op("Reshape", scores, graph.constant(np.array([heads, -1, 0], np.int64)))
    scores = graph.op("Where", unseen, graph.constant(np.float32(-np.inf)), scores)
    attention = graph.op("Softmax", scores, axis=-1)
    ranked = rank(graph, pool(graph, prompt, attention, heads, channels), prompt, network)
    return select(graph, prompt, ranked, network is None, facts.hidden_size, facts.rope.axes)


def _probe_norm(graph: GraphBuilder, embeds: ir.Value, norm: Any) -> tuple[ir.Value, torch.dtype]:
    """Tokens normalised for the first layer, and the type that they have."""
    if graph.dtype == BFLOAT16:
        wide = graph.rms_norm(graph.cast(embeds, FLOAT), "norm", norm, norm.weight.float())
        return graph.cast(wide, FLOAT16), torch.float16
    return graph.rms_norm(embeds, "norm", norm, norm.weight), norm.weight.dtype
