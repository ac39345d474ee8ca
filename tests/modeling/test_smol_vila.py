"""The folder that models/smol_vila/build.py writes, of a small random language model in SmolLM2's place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from foveate.calibration.torch_model import TorchModel
from models.smol_vila.build import FLATTEN, draw, make_tokenizer, merged, write

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
FIELDS: dict[str, Any] = {
    "tokenizer.ggml.tokens": [*CONTROL, *LETTERS, "in", "12"],
    "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(LETTERS) + 2),
    "tokenizer.ggml.merges": ["i n", "1 2"],
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": CHATML,
}
"""What a GGUF file says of a tokenizer."""


def language() -> LlamaForCausalLM:
    """A small Llama whose head is its embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(FIELDS["tokenizer.ggml.tokens"]), hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, eos_token_id=2,
        tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_the_folder_is_a_checkpoint_whose_language_model_is_the_base(tmp_path: Path) -> None:
    """1e-2 absolute on logits of magnitude 5: the folder's weights are float16."""
    llm = language()
    write(tmp_path, llm, FIELDS, draw(llm.config.hidden_size))
    model = TorchModel.load(tmp_path)
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    )
    question = model.prepare("in 12?", [picture])
    prompt = question.prompt
    assert len(prompt.visual_index) == 196
    said = model.tokenizer.decode(prompt.token_ids.tolist(), skip_special_tokens=False)
    start = "<|im_start|>user\n" + "<image>" * 196 + "\nin 12?<|im_end|>\n<|im_start|>assistant\n"
    assert said == start
    assert model.stops == {2}
    asked = [model.tokenizer.id_to_token(one) for one in prompt.token_ids[prompt.instruction_index]]
    assert asked == ["in", "Ġ", "1", "2", "?"]
    alone = model.prepare("in 12?", [])
    with torch.no_grad():
        wanted = llm(torch.from_numpy(alone.prompt.token_ids)[None]).logits[0, -1]
        state = model.language.last_state(alone.embeds, alone.positions)
    found = model.language.logits(state[0, -1])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2)


def test_what_was_trained_takes_the_place_of_weights_or_is_added(tmp_path: Path) -> None:
    llm = language()
    name = "model.layers.0.self_attn.q_proj.weight"
    left, right = torch.randn(32, 3), torch.randn(3, 32)
    norm = torch.randn(32)
    trained = {
        **draw(32),
        f"llm.{name}.left": left,
        f"llm.{name}.right": right,
        "llm.model.norm.weight": norm,
    }
    write(tmp_path, llm, FIELDS, trained)
    held = load_file(tmp_path / "llm" / "model.safetensors")
    before = llm.state_dict()
    torch.testing.assert_close(held[name], (before[name] + left @ right).half())
    assert torch.equal(held["model.norm.weight"], norm.half())
    other = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(held[other], before[other].half())
    assert set(merged(before, {})) == set(before)
    with pytest.raises(KeyError):
        merged(before, {f"{name}.left": left})


def test_digits_stand_alone_and_pictures_have_a_token() -> None:
    tokenizer = make_tokenizer(FIELDS)
    assert tokenizer.encode("in12").tokens == ["in", "1", "2"]
    assert tokenizer.encode("a<image>in").ids[1] == CONTROL.index("<repo_name>")
    assert tokenizer.get_vocab_size() == len(FIELDS["tokenizer.ggml.tokens"])
    assert FLATTEN.count("<image>") == 1
