"""What a Qwen2-VL checkpoint says of itself, and the graphs it becomes."""

import torch
from transformers import Qwen2VLForConditionalGeneration

from foveate.bundle.manifest import ModelFacts, Rope
from foveate.calibration.qwen2_vl import check_attention, weights
from foveate.export.compressor import INPUTS, OUTPUTS, Compressor
from foveate.export.qwen2_vl.modules import (
    TEXT_ATTENTION,
    VISION_ATTENTION,
    Decoder,
    Embeddings,
    FirstLayerProbe,
    Vision,
)
from foveate.export.trace import GraphPlan
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.f_theta import FTheta
from foveate.modeling.random_weights import draw
from foveate.runtime.language.base import state_names


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Qwen2VLForConditionalGeneration:
    """Load the checkpoint's weights as `dtype`, with eager attention.

    Raises:
        CheckpointError: Weights missing or unreadable, or a feature that the graphs do not have.
    """
    return weights(checkpoint, dtype, "eager")


def blank(checkpoint: Checkpoint, dtype: torch.dtype) -> Qwen2VLForConditionalGeneration:
    """A model of the checkpoint's shape with random weights, with eager attention.

    Raises:
        CheckpointError: config.json does not describe one, or asks for a feature that the graphs lack.
    """
    model = draw(checkpoint, dtype, "eager")
    check_attention(checkpoint, model)
    return model


def facts(model: Qwen2VLForConditionalGeneration) -> ModelFacts:
    """The sizes that the manifest records."""
    text = model.config.text_config
    return ModelFacts(
        hidden_size=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.hidden_size // text.num_attention_heads,
        vocabulary=text.vocab_size,
        tied_embeddings=bool(model.config.tie_word_embeddings),
        rope=Rope(
            theta=float(text.rope_parameters["rope_theta"]),
            sections=tuple(text.rope_parameters["mrope_section"]),
        ),
    )


def context(model: Qwen2VLForConditionalGeneration) -> int:
    """The longest sequence the language model was made for, in tokens."""
    return int(model.config.text_config.max_position_embeddings)


def plans(model: Qwen2VLForConditionalGeneration, network: FTheta | None) -> list[GraphPlan]:
    """The four graphs of a bundle; example sizes differ so that no two axes are taken for one."""
    model.set_attn_implementation(
        {"vision_config": VISION_ATTENTION, "text_config": TEXT_ATTENTION}
    )
    text, vision = model.config.text_config, model.config.vision_config
    dtype = model.dtype
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    patches = 3 * 5 * vision.spatial_merge_size**2
    width = text.hidden_size // text.num_attention_heads
    past = [
        torch.randn(2, text.num_key_value_heads, 5, width).to(dtype)
        for _ in range(2 * text.num_hidden_layers)
    ]
    states = state_names(text.num_hidden_layers)
    return [
        GraphPlan(
            "vision",
            Vision(model),
            (
                torch.randn(patches, patch),
                torch.zeros(patches, 2, dtype=torch.int64),
                torch.tensor([0, patches // 3, patches], dtype=torch.int32),
            ),
            ("pixel_values", "position_ids", "cu_seqlens"),
            ("visual_embeds",),
            ({0: "patches"}, {0: "patches"}, {0: "borders"}),
        ),
        GraphPlan(
            "embeddings",
            Embeddings(model),
            (torch.tensor([1, 2, 3]),),
            ("token_ids",),
            ("text_embeds",),
            ({0: "tokens"},),
        ),
        GraphPlan(
            "compressor",
            Compressor(FirstLayerProbe(model), network),
            (
                torch.randn(9, text.hidden_size).to(dtype),
                torch.randn(20, text.hidden_size).to(dtype),
                torch.cat([torch.arange(4), torch.arange(24, 29)]),
                torch.arange(4, 24),
                torch.arange(5, 8),
                torch.arange(29).expand(3, -1),
                torch.tensor([6]),
            ),
            INPUTS,
            OUTPUTS,
            (
                {0: "text"},
                {0: "visual"},
                {0: "text"},
                {0: "visual"},
                {0: "instruction"},
                {1: "prompt"},
                None,
            ),
        ),
        GraphPlan(
            "decoder",
            Decoder(model),
            (
                torch.randn(2, 3, text.hidden_size).to(dtype),
                torch.zeros(3, 2, 3, dtype=torch.int64),
                torch.ones(2, 8, dtype=torch.int64),
                past,
            ),
            (
                "inputs_embeds",
                "position_ids",
                "attention_mask",
                *(f"past.{name}" for name in states),
            ),
            (
                "logits",
                *(f"present.{name}" for name in states),
            ),
            (
                {0: "batch", 1: "sequence"},
                {1: "batch", 2: "sequence"},
                {0: "batch", 1: "total"},
                [{0: "batch", 2: "past"}] * len(past),
            ),
        ),
    ]
