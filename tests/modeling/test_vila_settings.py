"""What becomes of a VILA1.5 checkpoint's settings, tokens and templates; what is refused is named."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from foveate.errors import CheckpointError, UnsupportedFamilyError
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.vila import TorchVila
from foveate.modeling.weight_files import check_weights
from tests.checkpoints import change_json
from tests.modeling.reading import read_settings
from tests.modeling.test_checkpoint import ODD
from tests.vila_checkpoints import DUMPED, META, load_vila, write_vila

Change = Callable[[dict[str, Any]], Any]


def refused(folder: Path, *words: str) -> None:
    """The folder is refused with an error that has all words."""
    with pytest.raises(CheckpointError) as caught:
        load_vila(folder)
    for word in words:
        assert word in str(caught.value)


# Settings


def root(**fields: Any) -> tuple[str, Change]:
    return "config.json", lambda data: data.update(fields)


def within(part: str, **fields: Any) -> tuple[str, Change]:
    return f"{part}/config.json", lambda data: data.update(fields)


def images(**fields: Any) -> tuple[str, Change]:
    return "vision_tower/preprocessor_config.json", lambda data: data.update(fields)


REFUSED: dict[str, tuple[tuple[str, Change], tuple[str, ...]]] = {
    "padded pictures": (root(image_aspect_ratio="pad"), ("image_aspect_ratio", "'pad'", "resize")),
    "tiles": (root(image_aspect_ratio="dynamic_s2"), ("image_aspect_ratio", "dynamic_s2")),
    "scales": (root(s2=True), ("s2 is True",)),
    "dynamic scales": (root(dynamic_s2=True), ("dynamic_s2",)),
    "marks": (root(mm_use_im_start_end=True), ("mm_use_im_start_end",)),
    "without the first": (root(mm_vision_select_feature="patch"), ("mm_vision_select_feature",)),
    "no such layer": (root(mm_vision_select_layer=-5), ("mm_vision_select_layer is -5", "2 layers")),
    "another resolution": (root(vision_resolution=448), ("vision_resolution",)),
    "time tokens": (root(num_time_tokens=100), ("num_time_tokens",)),
    "an encoder": (root(video_encoder={"_target_": "TSPVideoEncoder"}), ("video_encoder",)),
    "unknown": (root(colour="blue"), ("colour", "does not know")),
    "no frames": (root(num_video_frames=0), ("num_video_frames",)),
    "other width": (root(hidden_size=32), ("hidden_size is 32", "llm")),
    "other tower": (root(mm_hidden_size=64), ("mm_hidden_size is 64", "vision_tower")),
    "a copy that differs": (
        ("config.json", lambda data: data["llm_cfg"].update(num_hidden_layers=3)),
        ("llm_cfg.num_hidden_layers is 3", "mine/llm/config.json"),
    ),
    "a projector of NVILA": (
        within("mm_projector", mm_projector_type="mlp_downsample_3x3_fix"),
        ("mine/mm_projector/config.json", "mlp_downsample_3x3_fix", "mlp_downsample"),
    ),
    "Qwen2": (within("llm", model_type="qwen2"), ("mine/llm/config.json", "model_type", "llama")),
    "CLIP": (within("vision_tower", model_type="clip_vision_model"), ("vision_tower", "clip")),
    "a longer context": (within("llm", model_max_length=8192), ("model_max_length", "linear")),
    "quantized": (
        within("llm", quantization_config={"quant_method": "awq"}), ("llm/config.json", "awq")
    ),
    "three axes": (
        within("llm", rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]}), ("mrope",)
    ),
    "another rope": (within("llm", rope_scaling={"type": "longrope"}), ("longrope",)),
    "cropped": (images(do_center_crop=True), ("preprocessor_config.json", "do_center_crop")),
    "kept aspect": (images(size={"shortest_edge": 54}), ("size", "height and width")),
    "another size": (images(size={"height": 56, "width": 56}), ("56", "image_size", "54")),
    "no square": (images(size={"height": 54, "width": 56}), ("size", "square")),
    "another filter": (images(resample=2), ("resample", "bicubic")),
    "another processor": (images(image_processor_type="CLIPImageProcessor"), ("CLIP",)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_vila_has_in_other_versions_is_refused_by_field(vila_folder: Path, name: str) -> None:
    (file, change), words = REFUSED[name]
    change_json(vila_folder / file, change)
    refused(vila_folder, *words)


FILES = (
    "config.json",
    "llm/config.json",
    "llm/generation_config.json",
    "llm/tokenizer_config.json",
    "vision_tower/config.json",
    "vision_tower/preprocessor_config.json",
    "mm_projector/config.json",
)


@pytest.mark.parametrize("file", FILES)
def test_odd_values_in_every_field_are_taken_or_named(vila_folder: Path, file: str) -> None:
    """Read as an export reads them before it loads the weights."""
    whole = json.loads((vila_folder / file).read_text())
    outcomes = []
    own = [field for field in whole if field not in DUMPED or field == "tie_word_embeddings"]
    for field, value in itertools.product(own, ODD):
        (vila_folder / file).write_text(json.dumps({**whole, field: value}))
        try:
            read_settings(vila_folder).tokenizer()
        except (CheckpointError, UnsupportedFamilyError) as error:
            outcomes.append(False)
            assert "mine" in str(error)
        else:
            outcomes.append(True)
    assert 0 < sum(outcomes) < len(outcomes)


@pytest.mark.parametrize("file", [*FILES, "llm/tokenizer.json", "mm_projector/model.safetensors"])
@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"null", b"\xff\xfe", None])
def test_a_file_that_is_something_else_is_read_or_named(
    vila_folder: Path, file: str, junk: bytes | None
) -> None:
    if junk is None:
        (vila_folder / file).unlink()
    else:
        (vila_folder / file).write_bytes(junk)
    try:
        checkpoint = read_settings(vila_folder)
        checkpoint.chat_template()
        check_weights(checkpoint)
    except CheckpointError as error:
        assert "mine" in str(error)
        assert "\n" not in str(error)
    else:
        assert junk is None


def test_other_kinds_of_llama_are_honoured(tmp_path: Path) -> None:
    """Llama 3.1's rope, biases, and heads of another size."""
    rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    fields = {"rope_scaling": rope, "attention_bias": True, "mlp_bias": True, "head_dim": 24}
    folder = write_vila(tmp_path / "other", llm_cfg=fields)
    model = load_vila(folder)
    facts = TorchVila().facts(model)
    assert (facts.head_dim, facts.rope.axes) == (24, 1)
    assert model.llm.model.rotary_emb.rope_type == "llama3"
    with torch.no_grad():
        options: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
        llm = LlamaForCausalLM.from_pretrained(folder / "llm", **options)
        ids = torch.randint(0, 300, (1, 20))
        assert torch.equal(model.llm(ids).logits, llm(ids).logits)


# Tokens and templates


def tokens_of(folder: Path) -> dict[str, str | None]:
    """The tokens that have a role, as texts."""
    checkpoint = Checkpoint.open(folder)
    tokenizer = checkpoint.tokenizer()
    model: Any = None
    found = TorchVila().tokens(checkpoint, model, tokenizer)
    return {role: tokenizer.id_to_token(index) for role, index in found.items()}


def test_a_picture_has_a_token_to_stand_for_it(vila_checkpoint: Path, tmp_path: Path) -> None:
    """The published tokenizer has no <image>: a reserved token does it, which nothing else writes."""
    reserved = "<|reserved_special_token_3|>"
    assert tokens_of(vila_checkpoint) == {
        "bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "image": reserved
    }  # fmt: skip
    checkpoint = Checkpoint.open(vila_checkpoint)
    assert reserved in checkpoint.chat_template()
    assert "<image>" not in checkpoint.chat_template()
    added = write_vila(tmp_path / "added", image_token=True)
    assert tokens_of(added)["image"] == "<image>"
    assert "<image>\n" in Checkpoint.open(added).chat_template()


def test_an_answer_ends_at_the_end_of_a_turn(vila_checkpoint: Path, vila_folder: Path) -> None:
    checkpoint = Checkpoint.open(vila_checkpoint)
    names = [checkpoint.tokenizer().id_to_token(one) for one in checkpoint.stops()]
    assert names == ["<|end_of_text|>", "<|eot_id|>"]
    assert checkpoint.generation(400).eos == checkpoint.stops()
    change_json(
        vila_folder / "llm" / "generation_config.json", lambda data: data.pop("eos_token_id")
    )
    change_json(vila_folder / "llm" / "config.json", lambda data: data.pop("eos_token_id"))
    assert Checkpoint.open(vila_folder).stops() == checkpoint.stops()[1:]


def test_a_template_with_places_for_pictures_goes_before_vilas(
    vila_folder: Path, tmp_path: Path
) -> None:
    own = "{% for m in messages %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}{% endfor %}"
    checkpoint = Checkpoint.open(vila_folder)
    assert "language and vision assistant" in checkpoint.chat_template()
    change_json(
        vila_folder / "llm" / "tokenizer_config.json", lambda data: data.update(chat_template=own)
    )
    with pytest.raises(CheckpointError, match="<image>, which is no added token"):
        checkpoint.chat_template()
    added = write_vila(tmp_path / "added", image_token=True)
    change_json(
        added / "llm" / "tokenizer_config.json", lambda data: data.update(chat_template=own)
    )
    assert Checkpoint.open(added).chat_template() == own


def test_a_language_model_of_another_prompt_needs_a_template(vila_folder: Path) -> None:
    text = (vila_folder / "llm" / "tokenizer.json").read_text()
    (vila_folder / "llm" / "tokenizer.json").write_text(text.replace("header_id|>", "heading|>"))
    with pytest.raises(CheckpointError, match=r"llm: no chat template with places for pictures"):
        Checkpoint.open(vila_folder).chat_template()
    config = json.loads((vila_folder / "llm" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == META
