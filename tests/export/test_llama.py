"""Graphs of a language model with plain rotary positions and without biases: a random Llama's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from foveate.bundle.manifest import CONTRIB_SUFFIX, ModelFacts, Rope
from foveate.errors import ExportError
from foveate.export.contrib.cases import contrib_cases
from foveate.export.contrib.compressor import compressor
from foveate.export.contrib.decoder import decoder
from foveate.export.contrib.merge import merge
from foveate.export.parity import Case, compare
from foveate.export.plans import compressor_plan, decoder_plan
from foveate.export.reference import compressor_case, decoder_cases, first_layer_attention
from foveate.export.trace import save_graph, write_graph
from foveate.families.base import Prompt, VisualInput
from foveate.modeling.attention import GROUPED
from foveate.modeling.language_model import Language
from foveate.modeling.ranker import Ranker
from foveate.modeling.rope import settle

FACTS = ModelFacts(
    hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=16, vocabulary=50,
    tied_embeddings=False, rope=Rope(theta=5e5, sections=()),
)  # fmt: skip
TEXT, VISUAL = 9, 20
RANKER = Ranker(words="unusual")


class Llama:
    """What the reference needs of a `TorchFamily`."""

    def facts(self, model: LlamaForCausalLM) -> ModelFacts:
        return FACTS

    def language(self, model: LlamaForCausalLM) -> Language:
        text = model.model
        return Language(text.embed_tokens, text.rotary_emb, text.layers, text.norm, model.lm_head)

    def decode(
        self, model: LlamaForCausalLM, embeds: Tensor, positions: Tensor, cache: DynamicCache
    ) -> Tensor:
        return model.model(
            inputs_embeds=embeds, position_ids=positions[0], past_key_values=cache, use_cache=True
        ).last_hidden_state


class NoPictures:
    """A family that prepares nothing: there is no vision graph here."""

    def prepare(self, media: Any) -> VisualInput:
        nothing = np.empty(0, np.int64)
        return VisualInput(
            calls=(), candidates=nothing > 0, picture=nothing, boxes=np.empty((0, 4), np.float32)
        )


def make_model(activation: str = "silu", **rope: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=FACTS.vocabulary, hidden_size=FACTS.hidden_size, intermediate_size=96,
        num_hidden_layers=FACTS.layers, num_attention_heads=FACTS.heads,
        num_key_value_heads=FACTS.kv_heads, initializer_range=0.2, hidden_act=activation,
        rope_parameters={"rope_type": "default", "rope_theta": FACTS.rope.theta, **rope},
        attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """What transformers' eager Llama gives for a prompt whose positions have a gap."""
    return make_cases(make_model())


def make_cases(model: LlamaForCausalLM) -> list[Case]:
    """What transformers' eager code gives for a prompt whose positions have a gap."""
    places = np.arange(TEXT + VISUAL, dtype=np.int64)
    prompt = Prompt(
        token_ids=places % FACTS.vocabulary,
        visual_index=places[4 : 4 + VISUAL],
        instruction_index=places[-4:-1],
        position_ids=(places + 7 * (places > 15))[None],
        next_position=TEXT + VISUAL + 7,
    )
    family: Any = Llama()
    with torch.no_grad():
        embeds = torch.randn(len(places), FACTS.hidden_size)
        attention = first_layer_attention(family, model, embeds, prompt)
        return [
            compressor_case(attention, RANKER, prompt, embeds),
            *decoder_cases(family, model, prompt, embeds),
        ]


def test_standard_operators(cases: list[Case], tmp_path: Path) -> None:
    """1e-5 of the largest value: float32 sums in another order."""
    assert 0 < compare_standard(make_model(), cases, tmp_path) <= 1e-5


def compare_standard(model: LlamaForCausalLM, cases: list[Case], tmp_path: Path) -> float:
    """How far graphs of standard operators are from what transformers gave."""
    model.set_attn_implementation(GROUPED)
    language = Llama().language(model)
    files = {}
    for plan in (compressor_plan(language, FACTS, RANKER), decoder_plan(language, FACTS)):
        written, _ = write_graph(plan, tmp_path)
        files[plan.role] = tmp_path / written[plan.role]
    return max(compare(files, "fp32", "standard", cases, tmp_path).values())


def test_contrib_operators(cases: list[Case], tmp_path: Path) -> None:
    """1e-5 of the largest value: float32 sums in another order."""
    assert 0 < compare_contrib(make_model(), cases, tmp_path) <= 1e-5


def compare_contrib(model: LlamaForCausalLM, cases: list[Case], tmp_path: Path) -> float:
    """How far graphs of contrib operators are from what transformers gave."""
    language, dtype = Llama().language(model), torch.float32
    graphs = {
        "compressor": compressor(language, FACTS, RANKER, dtype),
        "merge": merge(FACTS.hidden_size, dtype),
        "decoder": decoder(language, FACTS, dtype),
    }
    files = {}
    for role, graph in graphs.items():
        written, _ = save_graph(role, graph, tmp_path, CONTRIB_SUFFIX)
        assert written[role] == f"{role}.contrib.onnx"
        files[role] = tmp_path / written[role]
    family: Any = NoPictures()
    vision = Case("vision", {}, {"visual_embeds": np.empty((0, FACTS.hidden_size), np.float32)})
    put = contrib_cases([vision, *cases], family)
    assert [case.role for case in put].count("decoder") == 4
    return max(compare(files, "fp32", "contrib", put, tmp_path).values())


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_other_kinds_of_rope(kind: str, cases: list[Case], tmp_path: Path) -> None:
    """1e-5 of the largest value: float32 sums in another order."""
    model = make_model(rope_type=kind, **ROPES[kind])
    wanted = make_cases(model)
    last, plain = wanted[-1].expected["logits"], cases[-1].expected["logits"]
    assert np.array_equal(last, plain) == (kind == "dynamic"), "only beyond the context"
    settle(model.model.rotary_emb)
    assert 0 < compare_contrib(model, wanted, tmp_path) <= 1e-5
    if kind == "yarn":
        assert 0 < compare_standard(model, wanted, tmp_path) <= 1e-5


def test_an_activation_without_a_contrib_operator_is_refused() -> None:
    language = Llama().language(make_model("relu"))
    with pytest.raises(ExportError, match=r"ReLU has no contrib operator.*--operators standard"):
        decoder(language, FACTS, torch.float32)
