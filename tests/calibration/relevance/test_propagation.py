"""R_v and A⁰ against Eq. 1 written out, and what they must not cost."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2VLForConditionalGeneration

from foveate.calibration import relevance as module
from foveate.calibration.relevance.propagation import MODES, Mode, relevance
from foveate.calibration.torch_model import TorchModel
from foveate.modeling.language_model import TRACED, Language
from tests.calibration.plain import attention_maps, plain_relevance
from tests.conftest import NANO, Sample

# Float32 sums of a few hundred terms over six layers, against float64: 1e-6 is usual.
TOLERANCE = 1e-5


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Within the tolerance of the largest magnitude."""
    wanted = wanted.double()
    return bool((found.double() - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


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


@pytest.fixture(scope="module")
def nano() -> TorchModel:
    """The nano checkpoint under study, in float32."""
    return TorchModel.load(NANO)


@pytest.fixture(scope="module")
def reference() -> Qwen2VLForConditionalGeneration:
    """Transformers' own eager nano in float64."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        NANO, dtype=torch.float64, attn_implementation="eager"
    )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["letter", "two letters"])
def sample(request: pytest.FixtureRequest, samples: list[Sample]) -> Sample:
    """A question whose answer is one token, and one whose answer is several."""
    return next(sample for sample in samples if sample.task == request.param)


@pytest.mark.parametrize("mode", MODES)
def test_the_nano_checkpoint_agrees_with_eq_1(
    nano: TorchModel, reference: Qwen2VLForConditionalGeneration, sample: Sample, mode: Mode
) -> None:
    question = nano.ask(sample.question, [Image.open(sample.image)])
    said = nano.answer(question)
    assert nano.text(said) == sample.answer
    assert len(said) == (1 if sample.task == "letter" else 3)
    rows = nano.language.embedding(torch.tensor([said]))
    first = question.prompt.next_position
    later = torch.arange(first, first + len(said)).expand(3, -1)
    wanted = plain_relevance(
        reference.model.language_model,
        reference.lm_head,
        torch.cat([question.embeds, rows], dim=1).double(),
        torch.cat([question.positions, later], dim=1)[:, None],
        said,
        mode,
    )[question.prompt.visual_index]
    assert close(nano.relevance(question, said, mode), wanted)


def test_the_first_layers_attention_is_transformers_own(
    nano: TorchModel, reference: Qwen2VLForConditionalGeneration, sample: Sample
) -> None:
    question = nano.ask(sample.question, [Image.open(sample.image)])
    maps = attention_maps(
        reference.model.language_model,
        reference.lm_head,
        question.embeds.double(),
        question.positions[:, None],
        0,
        True,
    )
    prompt = question.prompt
    wanted = maps[0][0][:, prompt.instruction_index][:, :, prompt.visual_index]
    found = nano.attention(question)
    assert found.shape == (4, len(prompt.instruction_index), len(prompt.visual_index))
    assert close(found, wanted)


def test_what_is_kept_alone_answers_as_the_runtime_does(
    nano: TorchModel, samples: list[Sample]
) -> None:
    from tests.reference import Reference

    by_transformers = Reference()
    for sample in samples[:4]:
        picture = Image.open(sample.image)
        question = nano.ask(sample.question, [picture])
        kept = np.arange(0, len(question.prompt.visual_index), 3)
        request = by_transformers.prepare(sample.question, [picture])
        assert nano.answer(question, kept) == by_transformers.generate_kept(request, kept, 64)
