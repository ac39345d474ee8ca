"""How each graph of standard operators is made."""

import torch

from foveate.bundle.manifest import ModelFacts
from foveate.export.compressor import INPUTS, OUTPUTS, Compressor
from foveate.export.modules import Decoder, FirstLayerProbe
from foveate.export.trace import GraphPlan
from foveate.modeling.base import VisionModule
from foveate.modeling.f_theta import FTheta
from foveate.modeling.language_model import Language
from foveate.runtime.language.base import state_names


def plans(
    vision: VisionModule, language: Language, facts: ModelFacts, network: FTheta | None
) -> list[GraphPlan]:
    """The three graphs of a bundle; example sizes differ so that no two axes are taken for one.

    Args:
        vision: The family's.
        language: Its layers compute attention by `GROUPED`.
        facts: The model's sizes.
        network: What ranks; None for A_v⁰ itself.
    """
    return [
        GraphPlan(
            "vision",
            vision.module,
            vision.arguments,
            vision.inputs,
            ("visual_embeds",),
            vision.axes,
        ),
        compressor_plan(language, facts, network),
        decoder_plan(language, facts),
    ]


def compressor_plan(language: Language, facts: ModelFacts, network: FTheta | None) -> GraphPlan:
    """Probe, ranking, top-k and gather."""
    dtype = next(language.parameters()).dtype
    return GraphPlan(
        "compressor",
        Compressor(FirstLayerProbe(language), network),
        (
            torch.randn(9, facts.hidden_size).to(dtype),
            torch.randn(20, facts.hidden_size).to(dtype),
            torch.cat([torch.arange(4), torch.arange(24, 29)]),
            torch.arange(4, 24),
            torch.arange(5, 8),
            torch.arange(29).expand(facts.rope.axes, -1),
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
    )


def decoder_plan(language: Language, facts: ModelFacts) -> GraphPlan:
    """A step of the language model over a cache that grows."""
    dtype = next(language.parameters()).dtype
    names = state_names(facts.layers)
    past = [torch.randn(2, facts.kv_heads, 5, facts.head_dim).to(dtype) for _ in names]
    return GraphPlan(
        "decoder",
        Decoder(language),
        (
            torch.randn(2, 3, facts.hidden_size).to(dtype),
            torch.zeros(facts.rope.axes, 2, 3, dtype=torch.int64),
            torch.ones(2, 8, dtype=torch.int64),
            past,
        ),
        ("inputs_embeds", "position_ids", "attention_mask", *(f"past.{name}" for name in names)),
        ("logits", *(f"present.{name}" for name in names)),
        (
            {0: "batch", 1: "sequence"},
            {1: "batch", 2: "sequence"},
            {0: "batch", 1: "total"},
            [{0: "batch", 2: "past"}] * len(past),
        ),
    )
