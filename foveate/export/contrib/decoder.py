"""The language model in contrib operators: one attention kernel a layer, a cache written in place."""

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from transformers.activations import SiLUActivation

from foveate.bundle.manifest import ModelFacts
from foveate.errors import ExportError
from foveate.export.contrib.rotary import rotary_tables
from foveate.modeling.graph_builder import CONTRIB, FLOAT, INT32, INT64, GraphBuilder, Outputs
from foveate.modeling.language_model import Language
from foveate.runtime.language.base import state_names
from foveate.runtime.language.static_decoder import BEST

HEADS = 16
"""The width of a head is a multiple of this."""


def decoder(language: Language, facts: ModelFacts, dtype: torch.dtype) -> ir.Model:
    """The language model over a cache of fixed length that it writes in place.

    Takes `inputs_embeds` [B, S, H]; `position_ids` int64 [R, A], the rotary positions by slot of
    the cache, the same for every sequence, R ≥ total_sequence_length; `seqlens_k` int32 [B], tokens in
    each sequence's cache after this step less one; `total_sequence_length` int32 [1] in host memory: S
    for a first prompt, else up to where the cache may be filled; `last` int64 [1], the token whose
    successor is wanted; and the cache, `past.N.key` and `past.N.value` [B, kv_heads, C, head_dim],
    given back as `present`, which may be the same memory. Gives `logits` float32 [B, V]; `best` int64
    [B], their argmax; and `best_or_nan` float32 [B], the same, or NaN where a logit is not finite (or all are
    so large that their sum is not).

    Args:
        language: Its layers are like Llama's; their biases may be absent.
        facts: The model's sizes.
        dtype: Of the weights.

    Raises:
        ExportError: An activation or a size of heads that the contrib operators lack.
    """
    if facts.head_dim % HEADS:
        raise ExportError(
            f"the language model's heads are {facts.head_dim} wide, and the contrib operators take multiples "
            f"of {HEADS}; export with --operators standard"
        )
    graph = GraphBuilder(dtype)
    width, depth, groups = facts.hidden_size, facts.head_dim, facts.kv_heads
    cache: list[int | str] = ["batch", groups, "capacity", depth]
    hidden = graph.input("inputs_embeds", graph.dtype, ["batch", "sequence", width])
    positions = graph.input("position_ids", INT64, ["slots", facts.rope.axes])
    seen = graph.input("seqlens_k", INT32, ["batch"])
    total = graph.input("total_sequence_length", INT32, [1])
    last = graph.input("last", INT64, [1])
    past = {
        name: graph.input(f"past.{name}", graph.dtype, cache) for name in state_names(facts.layers)
    }
    tables = rotary_tables(graph, positions, facts, language.rotary)
    cos, sin = (graph.cast(table, graph.dtype) for table in tables)

    outputs: Outputs = {}
    layers: list[Any] = list(language.layers)
    norm: Any = layers[0].input_layernorm
    normed = graph.rms_norm(hidden, "layers.0.input_layernorm", norm, norm.weight)
    for number, layer in enumerate(layers):
        name, attention = f"layers.{number}", layer.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        states = past[f"{number}.key"], past[f"{number}.value"]
        attended, key, value = graph.outputs(
            "GroupQueryAttention",
            [
                graph.linear(normed, f"{name}.qkv", *packed(projections)),
                None, None, *states, seen, total, cos, sin,
            ],
            3, CONTRIB, num_heads=facts.heads, kv_num_heads=groups, do_rotary=1, scale=depth**-0.5,
        )  # fmt: skip
        outputs[f"present.{number}.key"] = (key, graph.dtype, cache)
        outputs[f"present.{number}.value"] = (value, graph.dtype, cache)
        final = number + 1 == len(layers)
        if final:
            attended, hidden = (
                graph.op("Gather", states, last, axis=1) for states in (attended, hidden)
            )
        attended = graph.layer(attended, f"{name}.o_proj", attention.o_proj)
        normed, hidden = graph.skip_rms_norm(
            hidden, attended, f"{name}.post_attention_layernorm", layer.post_attention_layernorm
        )
        narrow = gated(graph, normed, name, layer.mlp)
        norm = language.norm if final else layers[number + 1].input_layernorm
        label = "norm" if final else f"layers.{number + 1}.input_layernorm"
        normed, hidden = graph.skip_rms_norm(hidden, narrow, label, norm)

    flat = graph.op("Reshape", normed, [-1, width])
    logits = graph.cast(graph.layer(flat, "lm_head", language.head), FLOAT)
    best = graph.op("ArgMax", logits, axis=1, keepdims=0)
    # Maxima pass NaN over; a sum does not. Less itself it is 0 or NaN.
    total = graph.op("ReduceSum", logits, [1], keepdims=0)
    checked = graph.op("Add", graph.cast(best, FLOAT), graph.op("Sub", total, total))
    first: Outputs = {
        "logits": (logits, FLOAT, ["batch", facts.vocabulary]),
        "best": (best, INT64, ["batch"]),
        BEST: (checked, FLOAT, ["batch"]),
    }
    return graph.model("decoder", first | outputs)


def packed(layers: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
    """The weights of several linear layers as those of one, and their biases, if they have any."""
    biased = layers[0].bias is not None
    bias = torch.cat([layer.bias for layer in layers]) if biased else None
    return torch.cat([layer.weight for layer in layers]), bias


def gated(graph: GraphBuilder, value: ir.Value, name: str, mlp: Any) -> ir.Value:
    """A layer's gated perceptron."""
    if not isinstance(mlp.act_fn, SiLUActivation | torch.nn.SiLU):
        raise ExportError(
            f"the language model's activation {type(mlp.act_fn).__name__} has no contrib operator; "
            "export with --operators standard"
        )
    gate = graph.layer(value, f"{name}.gate_proj", mlp.gate_proj)
    up = graph.layer(value, f"{name}.up_proj", mlp.up_proj)
    wide = graph.op("Mul", graph.contrib("QuickGelu", gate, alpha=1.0), up)
    return graph.layer(wide, f"{name}.down_proj", mlp.down_proj)
