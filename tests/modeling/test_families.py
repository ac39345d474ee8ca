"""The torch halves of families: every family has one, and both halves agree on pictures and tokens."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import DynamicCache

from foveate import families
from foveate.errors import CheckpointError, UnsupportedFamilyError
from foveate.families.base import Family, Video, user_turn
from foveate.modeling.base import TorchFamily
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.families import torch_family
from foveate.modeling.language_model import TRACED
from tests.checkpoints import change_json
from tests.conftest import NANO, Sample


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(NANO)


@pytest.fixture(scope="module")
def torch_half(checkpoint: Checkpoint) -> TorchFamily:
    return torch_family(checkpoint.family)


@pytest.fixture(scope="module")
def model(torch_half: TorchFamily, checkpoint: Checkpoint) -> Any:
    return torch_half.load(checkpoint, torch.float32, "sdpa")


@pytest.fixture(scope="module")
def family(torch_half: TorchFamily, checkpoint: Checkpoint, model: Any) -> Family:
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    return families.create(
        checkpoint.family,
        preprocessing=families.settings_from_checkpoint(checkpoint.family, NANO),
        tokenizer=tokenizer,
        chat_template=checkpoint.chat_template(),
        tokens=torch_half.tokens(checkpoint, model, tokenizer),
    )


def test_every_family_has_a_torch_half() -> None:
    for name in families.names():
        assert callable(torch_family(name).load)
    with pytest.raises(UnsupportedFamilyError, match="no family 'other' in torch"):
        torch_family("other")


@torch.no_grad()
def test_visual_tokens_are_those_of_transformers_own_processor(
    torch_half: TorchFamily, checkpoint: Checkpoint, model: Any, family: Family
) -> None:
    random = np.random.default_rng(0)
    pictures = [
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((112, 168), (140, 84))
    ]
    theirs = torch_half.processor(checkpoint)(pictures)
    ours = torch_half.processed(model, family.prepare(pictures))
    assert set(ours) <= set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])
    visual = family.prepare([*pictures, Video((pictures[0],) * 4)])
    tokens = torch_half.encode(model, visual)
    assert tokens.shape == (visual.tokens, torch_half.facts(model).hidden_size)
    alone = torch_half.encode_processed(model, theirs)
    assert torch.allclose(tokens[: len(alone)], alone, atol=1e-5)


@torch.no_grad()
def test_transformers_own_code_and_the_parts_say_the_same(
    torch_half: TorchFamily, checkpoint: Checkpoint, family: Family, samples: list[Sample]
) -> None:
    """`decode` runs the whole language model, `Language` its parts by an attention of ours."""
    model = torch_half.load(checkpoint, torch.float32, "sdpa")
    media = [Image.open(samples[0].image)]
    visual = family.prepare(media)
    prompt = family.layout(user_turn(samples[0].question, media), visual)
    language = torch_half.language(model)
    embeds = language.embedding(torch.from_numpy(prompt.token_ids))
    embeds[prompt.visual_index] = torch_half.encode(model, visual)
    positions = torch.from_numpy(prompt.position_ids)
    whole = torch_half.decode(model, embeds[None], positions[:, None], DynamicCache())
    torch_half.set_attention(model, TRACED)
    (*_, last) = language.states(embeds[None], positions)
    assert torch.allclose(language.norm(last), whole, atol=1e-3 * float(whole.abs().max()))
    assert torch.equal(language.logits(last)[0, -1].argmax(), language.head(whole)[0, -1].argmax())


def test_special_tokens_that_a_template_names_are_known_to_it(
    torch_half: TorchFamily, model: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(NANO, tmp_path / "mine", ignore=shutil.ignore_patterns("samples"))
    template = (folder / "chat_template.jinja").read_text()
    checkpoint = Checkpoint.open(folder)
    usual = torch_half.tokens(checkpoint, model, checkpoint.tokenizer())
    (folder / "chat_template.jinja").write_text("{{ pad_token }}{{ eos_token }}" + template)
    tokens = torch_half.tokens(checkpoint, model, checkpoint.tokenizer())
    assert tokens == {**usual, "pad": checkpoint.tokenizer().token_to_id("<|endoftext|>")}
    change_json(
        folder / "tokenizer_config.json", lambda data: data.update(eos_token="<|endoftext|>")
    )
    with pytest.raises(CheckpointError, match="eos_token"):
        torch_half.tokens(checkpoint, model, checkpoint.tokenizer())


def test_a_tokenizer_without_the_end_of_a_turn_is_refused(
    torch_half: TorchFamily, checkpoint: Checkpoint, model: Any
) -> None:
    from tokenizers import models

    with pytest.raises(CheckpointError, match="the tokenizer has no"):
        torch_half.tokens(checkpoint, model, Tokenizer(models.BPE()))
