"""How each graph of standard operators is made."""

import torch

from foveate.bundle.manifest import ModelFacts
from foveate.export.compressor import OUTPUTS, Compressor
from foveate.export.modules import Decoder, FirstLayerProbe
from foveate.export.trace import GraphPlan
from foveate.modeling.base import VisionModule
from foveate.modeling.language_model import Language
from foveate.modeling.ranker import Ranker
from foveate.runtime.language.base import state_names


def plans(
    vision: VisionModule, language: Language, facts: ModelFacts, ranker: Ranker
) -> list[GraphPlan]:
    """The three graphs of a bundle; example sizes differ so that no two axes are taken for one.

    Args:
        vision: The family's.
        language: Its layers compute attention by `GROUPED`.
        facts: The model's sizes.
        ranker: What ranks.
    """
    return [
        GraphPlan("vision", vision.module, vision.inputs, ("visual_embeds",)),
        compressor_plan(language, facts, ranker),
        decoder_plan(language, facts),
    ]


def compressor_plan(language: Language, facts: ModelFacts, ranker: Ranker) -> GraphPlan:
    """Probe, ranking, top-k and gather."""
    dtype, width = next(language.parameters()).dtype, facts.hidden_size
    inputs = {
        "text_embeds": (torch.randn(9, width).to(dtype), {0: "text"}),
        "visual_embeds": (torch.randn(20, width).to(dtype), {0: "visual"}),
        "text_index": (torch.cat([torch.arange(4), torch.arange(24, 29)]), {0: "text"}),
        "visual_index": (torch.arange(4, 24), {0: "visual"}),
        "instruction_rows": (torch.arange(5, 8), {0: "instruction"}),
        "position_ids": (torch.arange(29).expand(facts.rope.axes, -1), {1: "prompt"}),
        "keep": (torch.tensor([6]), None),
    }
    return GraphPlan("compressor", Compressor(FirstLayerProbe(language), ranker), inputs, OUTPUTS)


def decoder_plan(language: Language, facts: ModelFacts) -> GraphPlan:
    """A step of the language model over a cache that grows."""
    dtype, names = next(language.parameters()).dtype, state_names(facts.layers)
    past = torch.randn(2, facts.kv_heads, 5, facts.head_dim).to(dtype)
    mask = torch.ones(2, 8, dtype=torch.int64)
    inputs = {
        "inputs_embeds": (
            torch.randn(2, 3, facts.hidden_size).to(dtype), {0: "batch", 1: "sequence"},
        ),
        "position_ids": (
            torch.zeros(facts.rope.axes, 2, 3, dtype=torch.int64), {1: "batch", 2: "sequence"},
        ),
        "attention_mask": (mask, {0: "batch", 1: "total"}),
        "past": (
            {name: past.clone() for name in names},
            {name: {0: "batch", 2: "past"} for name in names},
        ),
    }  # fmt: skip
    outputs = ("logits", *(f"present.{name}" for name in names))
    return GraphPlan("decoder", Decoder(language), inputs, outputs)
