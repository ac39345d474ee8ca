"""LLaVA-OneVision's torch half: what it refuses, and how it agrees with the other half and with transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import DynamicCache

from foveate import families
from foveate.calibration.torch_model import TorchModel
from foveate.errors import CheckpointError, ExportError, ImageError
from foveate.families.base import Family, Medium, user_turn
from foveate.families.llava_onevision import TiledInput
from foveate.modeling.base import TorchFamily
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.families import torch_family
from foveate.modeling.language_model import TRACED
from tests.checkpoints import change_json
from tests.llava_onevision import Reference, film, noise

QUESTION = "What can be seen?"
CLOSE = {"rtol": 0, "atol": 1e-5}
"""Of values up to 5: the same float32 sums in other batches."""


@pytest.fixture(scope="module")
def checkpoint(llava_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(llava_checkpoint)


@pytest.fixture(scope="module")
def torch_half(checkpoint: Checkpoint) -> TorchFamily:
    return torch_family(checkpoint.family)


@pytest.fixture(scope="module")
def model(torch_half: TorchFamily, checkpoint: Checkpoint) -> Any:
    return torch_half.load(checkpoint, torch.float32, "sdpa")


@pytest.fixture(scope="module")
def family(torch_half: TorchFamily, checkpoint: Checkpoint, model: Any) -> Family:
    tokenizer = checkpoint.tokenizer()
    return families.create(
        checkpoint.family,
        preprocessing=families.settings_from_checkpoint(checkpoint.family, checkpoint.root),
        tokenizer=tokenizer,
        chat_template=checkpoint.chat_template(),
        tokens=torch_half.tokens(checkpoint, model, tokenizer),
    )


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2])
def test_pictures_are_those_of_transformers_own_processor(
    torch_half: TorchFamily, checkpoint: Checkpoint, model: Any, family: Family, count: int
) -> None:
    pictures = [noise(100, 60), noise(30, 90)][:count]
    theirs = torch_half.processor(checkpoint)(pictures)
    visual = family.prepare(pictures)
    ours = torch_half.processed(model, visual)
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])
    tokens = torch_half.encode(model, visual)
    torch.testing.assert_close(torch_half.encode_processed(model, theirs), tokens, **CLOSE)


@torch.no_grad()
def test_pictures_and_videos_are_encoded_in_their_order(
    torch_half: TorchFamily, model: Any, family: Family, llava_checkpoint: Path
) -> None:
    reference = Reference(llava_checkpoint)
    media: list[Medium] = [film(2), noise(60, 90), film(1)]
    messages = user_turn(QUESTION, media)
    visual = family.prepare(media)
    tokens = torch_half.encode(model, visual)
    order = np.argsort(family.layout(messages, visual).visual_index)
    wanted = reference.prepare(messages, media).visual_embeds
    torch.testing.assert_close(tokens[torch.from_numpy(order)], wanted, **CLOSE)
    features = torch_half.features(model, visual)
    assert visual.rows is not None and visual.weights is not None
    taken = features[torch.from_numpy(visual.rows)]
    summed = (torch.from_numpy(visual.weights)[..., None] * taken).sum(1)
    torch.testing.assert_close(summed, tokens, **CLOSE)


@torch.no_grad()
def test_transformers_own_code_and_the_parts_say_the_same(
    torch_half: TorchFamily, checkpoint: Checkpoint, family: Family
) -> None:
    model = torch_half.load(checkpoint, torch.float32, "sdpa")
    media: list[Medium] = [noise(60, 90)]
    visual = family.prepare(media)
    prompt = family.layout(user_turn(QUESTION, media), visual)
    language = torch_half.language(model)
    embeds = language.embedding(torch.from_numpy(prompt.token_ids))
    embeds[prompt.visual_index] = torch_half.encode(model, visual)
    positions = torch.from_numpy(prompt.position_ids)
    whole = torch_half.decode(model, embeds[None], positions[:, None], DynamicCache())
    torch_half.set_attention(model, TRACED)
    (*_, last) = language.states(embeds[None], positions)
    assert torch.allclose(language.norm(last), whole, atol=1e-3 * float(whole.abs().max()))


@torch.no_grad()
def test_a_picture_is_shrunk_to_fewer_tiles(
    torch_half: TorchFamily, model: Any, family: Family
) -> None:
    """The most tiles that leave it with so many tokens."""
    picture = noise(100, 100)
    whole = family.plan([picture]).tokens
    counts = set()
    for most in (whole, whole - 1, 500, 351):
        smaller = family.shrink([picture], [most])
        counts.add(smaller.tokens)
        assert smaller.tokens <= most
        assert not smaller.pooled
        assert torch_half.encode(model, smaller).shape == (smaller.tokens, 64)
    assert whole in counts and min(counts) == 351
    several = family.shrink([picture, picture], [170, 170])
    assert isinstance(several, TiledInput)
    assert several.counts == (170, 170) and not several.pooled
    with pytest.raises(ImageError, match="video is not made smaller"):
        family.shrink([film(2)], [4])


def test_what_fewer_tiles_do_not_reach_is_pooled(llava_checkpoint: Path) -> None:
    """The tile of the whole, 13 x 13, pooled; a newline after it where there is room."""
    model = TorchModel.load(llava_checkpoint)
    picture, wide = noise(100, 100), 13**2
    whole = model.encode([picture])
    for most, tokens in ((200, wide + 1), (1, 1)):
        found = model.encode([picture], [most])
        assert found.visual.pooled
        assert found.visual.tokens == len(found.embeds) == tokens
    views = whole.embeds[:wide].reshape(13, 13, -1)
    assert torch.allclose(found.embeds[0], views.mean((0, 1)), **CLOSE)
    pictures = [picture, noise(40, 80)]
    several, smaller = model.encode(pictures), model.encode(pictures, [170, 50])
    visual = smaller.visual
    assert isinstance(visual, TiledInput)
    assert visual.counts == (170, 50)
    assert np.flatnonzero(~visual.candidates).tolist() == [169, 219]
    assert torch.allclose(smaller.embeds[:170], several.embeds[:170], **CLOSE)
    # 7 x 7 cells of 13 / 7 patches each: the first one has a whole patch, and 6 / 7 of the next.
    corner = several.embeds[170:][:wide].reshape(13, 13, -1)[:2, :2]
    share = torch.tensor([7 / 13, 6 / 13])
    first = (share[:, None, None] * share[None, :, None] * corner).sum((0, 1))
    assert torch.allclose(smaller.embeds[170], first, **CLOSE)
    assert torch.allclose(smaller.embeds[-1], several.embeds[-1], **CLOSE)
    question = model.ask(QUESTION, smaller)
    assert len(question.prompt.visual_index) == 220
    assert model.answer(question, most=2)


def test_a_video_needs_no_token_of_its_own_where_there_are_none(
    torch_half: TorchFamily, checkpoint: Checkpoint, model: Any
) -> None:
    tokenizer = checkpoint.tokenizer()
    tokens = torch_half.tokens(checkpoint, model, tokenizer)
    assert tokens == {
        role: tokenizer.token_to_id(text)
        for role, text in {"image": "<image>", "video": "<video>", "eos": "<|im_end|>"}.items()
    }
    fewer = json.loads(tokenizer.to_str())
    fewer["added_tokens"] = [one for one in fewer["added_tokens"] if one["content"] != "<video>"]
    without = Tokenizer.from_str(json.dumps(fewer))
    assert set(torch_half.tokens(checkpoint, model, without)) == {"image", "eos"}


def test_random_weights_are_drawn(torch_half: TorchFamily, checkpoint: Checkpoint) -> None:
    drawn = torch_half.blank(checkpoint, torch.float32, "eager")
    assert torch_half.facts(drawn).hidden_size == 64
    assert torch_half.context(drawn) == 16384


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("", {"vision_feature_select_strategy": "default"}, "first token of each tile is left out"),
        ("", {"vision_feature_layer": [-1, -2]}, "vision_feature_layer is"),
        (
            "",
            {"vision_feature_layer": 9},
            r"config\.json: vision_feature_layer is 9, .* has 2 layers",
        ),
        ("", {"use_image_newline_parameter": False}, "pictures without newlines"),
        ("", {"image_token_index": 511}, "image_token_index is 511, which is no token"),
        ("", {"colour": "blue"}, "colour is 'blue', a field that Foveate does not know"),
        ("text_config", {"model_type": "llama"}, r"text_config\.model_type is 'llama'"),
        ("text_config", {"use_sliding_window": True}, "sliding-window"),
        ("text_config", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ("vision_config", {"model_type": "clip_vision_model"}, r"vision_config\.model_type is"),
        ("vision_config", {"num_channels": 1}, "another number of channels"),
        ("vision_config", {"num_attention_heads": 5}, r"vision_config: hidden_size is 24, which 5"),
        ("text_config", {"num_attention_heads": 5}, r"text_config: hidden_size is 64, which 5"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(
    llava_checkpoint: Path, tmp_path: Path, part: str, change: dict[str, Any], said: str
) -> None:
    folder = shutil.copytree(llava_checkpoint, tmp_path / "mine")
    change_json(folder / "config.json", lambda data: (data[part] if part else data).update(change))
    with pytest.raises(CheckpointError, match=said):
        export_parts(folder)


def export_parts(folder: Path) -> None:
    """What an export does with a checkpoint before it writes graphs."""
    checkpoint = Checkpoint.open(folder)
    torch_half = torch_family(checkpoint.family)
    model = torch_half.load(checkpoint, torch.float32, "eager")
    torch_half.tokens(checkpoint, model, checkpoint.tokenizer())
    torch_half.vision_module(model)


@pytest.mark.parametrize(
    "change",
    [
        {"num_image_tokens": 729},
        {"vision_aspect_ratio": "anyres_max_4"},
        {"vision_feature_select_strategy": "default"},
    ],
    ids=str,
)
def test_a_processor_that_lays_out_otherwise_is_refused(
    llava_checkpoint: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = shutil.copytree(llava_checkpoint, tmp_path / "mine")
    change_json(folder / "processor_config.json", lambda data: data.update(num_image_tokens=169))
    Checkpoint.open(folder)
    torch_family("llava_onevision").check(Checkpoint.open(folder))
    change_json(folder / "processor_config.json", lambda data: data.update(change))
    with pytest.raises(CheckpointError, match=f"{next(iter(change))} is .* make them the same"):
        torch_family("llava_onevision").check(Checkpoint.open(folder))


@pytest.mark.parametrize("field", ["hidden_act", "projector_hidden_act"])
def test_an_activation_without_contrib_operator_is_refused(
    llava_checkpoint: Path, tmp_path: Path, field: str
) -> None:
    folder = shutil.copytree(llava_checkpoint, tmp_path / "mine")
    own = "vision_config" if field == "hidden_act" else ""
    change_json(
        folder / "config.json",
        lambda data: (data[own] if own else data).update({field: "relu"}),
    )
    checkpoint = Checkpoint.open(folder)
    torch_half = torch_family(checkpoint.family)
    model = torch_half.load(checkpoint, torch.float32, "eager")
    preprocessing = families.settings_from_checkpoint(checkpoint.family, folder)
    with pytest.raises(ExportError, match="relu has no contrib operator; export with --operators"):
        torch_half.contrib_vision(model, preprocessing)
