"""R_v against Eq. 1 written out."""

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2VLForConditionalGeneration

from foveate.calibration.relevance import propagation as module
from foveate.calibration.relevance.propagation import MODES, Mode, relevance
from foveate.calibration.torch_model import TorchModel
from foveate.modeling.language_model import TRACED, Language
from tests.calibration.plain import close, plain_relevance
from tests.conftest import Sample


def parts(model: LlamaForCausalLM) -> Language:
    """A Llama's parts."""
    text = model.model
    return Language(text.embed_tokens, text.rotary_emb, text.layers, text.norm, model.lm_head)


@pytest.fixture(params=[(1, 4, 4), (3, 4, 2), (4, 6, 1)], ids=lambda shape: f"layers-heads-{shape}")
def llama(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    """A random Llama of some layers, heads and key-value heads, in float32."""
    layers, heads, groups = request.param
    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=heads * 8,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        attn_implementation="eager",
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("count", [1, 3, 11])
@pytest.mark.parametrize("mode", MODES)
def test_a_random_model_agrees_with_eq_1(llama: LlamaForCausalLM, mode: Mode, count: int) -> None:
    embeds = torch.randn(1, 23 + count, llama.config.hidden_size)
    positions = torch.arange(embeds.shape[1])[None]
    tokens = torch.randint(50, (count,))
    double = llama.double()
    wanted = plain_relevance(
        double.model, double.lm_head, embeds.double(), positions, tokens.tolist(), mode
    )
    llama.float().set_attn_implementation(TRACED)
    assert close(relevance(parts(llama), embeds, positions, tokens, mode), wanted)


@pytest.mark.parametrize("mode", ["grad-clamp", "mean"])
def test_rows_in_blocks_give_the_same(
    llama: LlamaForCausalLM, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.set_attn_implementation(TRACED)
    embeds = torch.randn(1, 31, llama.config.hidden_size)
    positions, tokens = torch.arange(31)[None], torch.tensor([3, 4])
    whole = relevance(parts(llama), embeds, positions, tokens, mode)
    monkeypatch.setattr(module, "BLOCK_BYTES", 5 * 31 * 4 * 4)
    assert close(relevance(parts(llama), embeds, positions, tokens, mode), whole)


@pytest.mark.parametrize("mode", MODES)
def test_the_nano_checkpoint_agrees_with_eq_1(
    model: TorchModel, eager: Qwen2VLForConditionalGeneration, sample: Sample, mode: Mode
) -> None:
    question = model.prepare(sample.question, [Image.open(sample.image)])
    answer = model.answer(question)
    assert model.text(answer) == sample.answer
    assert len(answer) == (1 if sample.task == "letter" else 3)
    rows = model.language.embedding(torch.tensor([answer]))
    first = question.prompt.next_position
    later = torch.arange(first, first + len(answer)).expand(3, -1)
    wanted = plain_relevance(
        eager.model.language_model,
        eager.lm_head,
        torch.cat([question.embeds, rows], dim=1).double(),
        torch.cat([question.positions, later], dim=1)[:, None],
        answer,
        mode,
    )[question.prompt.visual_index]
    assert close(model.relevance(question, answer, mode), wanted)
