"""VILA1.5's torch half: the published layout loaded, and each part against what it is built from."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, SiglipVisionModel

from foveate.calibration.provenance import checkpoint_facts
from foveate.errors import CheckpointError, UnsupportedFamilyError
from foveate.modeling.cast_weights import cast_weights
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.families import torch_family
from foveate.modeling.random_weights import count_parameters
from foveate.modeling.vila import TorchVila, Vila
from foveate.modeling.vila_projector import Projector
from foveate.modeling.weight_files import check_weights
from tests.checkpoints import change_json
from tests.modeling.reading import read_settings
from tests.modeling.test_checkpoint import ODD
from tests.vila_checkpoints import DUMPED, META, write_vila

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def folder(vila_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return shutil.copytree(vila_checkpoint, tmp_path / "mine")


@pytest.fixture(scope="module")
def model(vila_checkpoint: Path) -> Vila:
    return load(vila_checkpoint)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Vila:
    """A checkpoint's model."""
    checkpoint = Checkpoint.open(folder)
    half = torch_family(checkpoint.family)
    assert isinstance(half, TorchVila)
    return half.load(checkpoint, dtype, "eager")


def refused(folder: Path, *words: str) -> None:
    """The folder is refused with an error that has all words."""
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value)


# Loading


def test_every_weight_of_the_three_folders_is_loaded(vila_checkpoint: Path, model: Vila) -> None:
    parts = {
        "llm": (model.llm, ""),
        "vision_tower": (model.tower, "vision_model."),
        "mm_projector": (model.projector, ""),
    }
    for name, (module, prefix) in parts.items():
        held = load_file(vila_checkpoint / name / "model.safetensors")
        state = {f"{prefix}{key}": one for key, one in module.state_dict().items()}
        left = {key for key in held.keys() - state.keys() if ".head." not in key}
        assert (left, state.keys() - held.keys()) == (set(), set())
        for key, one in state.items():
            assert torch.equal(one, held[key]), key


def test_weights_in_several_files_are_the_same(vila_checkpoint: Path, tmp_path: Path) -> None:
    sharded = write_vila(tmp_path / "sharded", shards=True)
    assert not (sharded / "llm" / "model.safetensors").exists()
    whole = load(vila_checkpoint)
    for (name, one), (_, other) in zip(
        load(sharded).state_dict().items(), whole.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    (sharded / "llm" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"sharded/llm/model-00002.* missing"):
        check_weights(Checkpoint.open(sharded))


def test_casting_and_checking_see_every_folder(vila_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(vila_checkpoint)
    seen: list[str] = []
    check_weights(checkpoint, say=seen.append)
    assert {"lm_head.weight", "layers.4.bias"} < set(seen)
    assert "vision_model.post_layernorm.bias" in seen
    copy = cast_weights(checkpoint, torch.float16, tmp_path)
    cast, whole = load(copy.root, torch.float16), load(vila_checkpoint)
    for (name, one), (_, other) in zip(
        cast.state_dict().items(), whole.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other.to(one.dtype)), name
    assert cast.dtype == torch.float16


def test_a_checkpoint_is_known_by_all_its_files(folder: Path) -> None:
    before = checkpoint_facts(str(folder))
    weights = load_file(folder / "mm_projector" / "model.safetensors")
    weights["layers.4.bias"] += 1
    save_file(weights, folder / "mm_projector" / "model.safetensors")
    after = checkpoint_facts(str(folder))
    assert before["family"] == "vila"
    assert before["checkpoint_sha256"] != after["checkpoint_sha256"]


def test_weights_that_are_not_finite_are_refused_by_file(folder: Path) -> None:
    file = folder / "mm_projector" / "model.safetensors"
    weights = load_file(file)
    weights["layers.2.weight"][0, 0] = float("nan")
    save_file(weights, file)
    with pytest.raises(
        CheckpointError, match=r"mm_projector/model\.safetensors: layers\.2\.weight"
    ):
        check_weights(Checkpoint.open(folder))


@pytest.mark.parametrize("change", ["layers.4.bias", "more", "layers.2.weight"])
def test_a_projector_of_other_weights_is_refused(folder: Path, change: str) -> None:
    file = folder / "mm_projector" / "model.safetensors"
    weights = load_file(file)
    if change == "more":
        weights["layers.5.weight"] = torch.zeros(2)
    elif change == "layers.2.weight":
        weights[change] = weights[change][:, :-4].contiguous()
    else:
        del weights[change]
    save_file(weights, file)
    refused(folder, "mine/mm_projector", "layers.5.weight" if change == "more" else change)


def test_random_weights_are_drawn_of_the_configuration_alone(
    vila_checkpoint: Path, model: Vila, tmp_path: Path
) -> None:
    shape = shutil.copytree(
        vila_checkpoint, tmp_path / "shape", ignore=shutil.ignore_patterns("*.safetensors")
    )
    for part in ("llm", "vision_tower", "mm_projector"):
        (shape / part / "config.json").unlink()
    checkpoint = Checkpoint.open(shape)
    half = torch_family(checkpoint.family)
    one, again = (half.blank(checkpoint, torch.bfloat16, "eager") for _ in range(2))
    assert count_parameters(one) == count_parameters(model)
    assert half.facts(one) == half.facts(model)
    for (name, weight), (_, same) in zip(
        one.named_parameters(), again.named_parameters(), strict=True
    ):
        assert weight.dtype == torch.bfloat16
        assert weight.isfinite().all(), name
        assert torch.equal(weight, same), name
    for (name, buffer), (_, wanted) in zip(one.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(buffer, wanted), name


# The parts


@torch.no_grad()
def test_the_parts_are_those_of_transformers(vila_checkpoint: Path, model: Vila) -> None:
    """Equal to the bit: the very same modules."""
    options: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
    tower = SiglipVisionModel.from_pretrained(vila_checkpoint / "vision_tower", **options)
    pixels = torch.randn(2, 3, 54, 54)
    states = tower(pixels, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert torch.equal(model(pixels), model.projector(states[-2]).flatten(0, 1))
    llm = LlamaForCausalLM.from_pretrained(vila_checkpoint / "llm", **options)
    ids = torch.randint(0, 300, (1, 20))
    assert torch.equal(model.llm(ids).logits, llm(ids).logits)


def expected_tokens(
    states: NDArray[np.float64], weights: dict[str, NDArray[np.float64]], order: str
) -> NDArray[np.float64]:
    """The projector by its definition, in float64, patch by patch."""
    pictures, patches, width = states.shape
    grid = round(patches**0.5)
    across = -(-grid // 2)
    found = np.empty((pictures, across**2, len(weights["layers.4.bias"])))
    for picture in range(pictures):
        for row in range(across):
            for column in range(across):
                block = np.zeros((4, width))
                for place, (down, right) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
                    i, j = 2 * row + down, 2 * column + right
                    if i < grid and j < grid:
                        block[place] = states[picture, i * grid + j]
                x = block.reshape(-1)
                x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
                x = x * weights["layers.1.weight"] + weights["layers.1.bias"]
                x = weights["layers.2.weight"] @ x + weights["layers.2.bias"]
                x = x * 0.5 * (1 + np.array([erf(one / 2**0.5) for one in x]))
                token = column * across + row if order == "columns" else row * across + column
                found[picture, token] = weights["layers.4.weight"] @ x + weights["layers.4.bias"]
    return found


def erf(value: float) -> float:
    """The error function."""
    return float(torch.erf(torch.tensor(value, dtype=torch.float64)))


@pytest.mark.parametrize("grid", [1, 4, 7])
@pytest.mark.parametrize(
    ("kind", "order"), [("mlp_downsample", "columns"), ("mlp_downsample_2x2_fix", "rows")]
)
@torch.no_grad()
def test_the_projector_is_its_definition(grid: int, kind: str, order: str) -> None:
    """1e-5 absolute: float32 sums of values around 1."""
    torch.manual_seed(grid)
    projector = Projector(kind, 6, 5)
    for weight in projector.parameters():
        weight.normal_()
    states = torch.randn(2, grid**2, 6)
    weights = {name: one.double().numpy() for name, one in projector.state_dict().items()}
    wanted = expected_tokens(states.double().numpy(), weights, order)
    found = projector(states).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


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
def test_what_vila_has_in_other_versions_is_refused_by_field(folder: Path, name: str) -> None:
    (file, change), words = REFUSED[name]
    change_json(folder / file, change)
    refused(folder, *words)


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
def test_odd_values_in_every_field_are_taken_or_named(folder: Path, file: str) -> None:
    """Read as an export reads them before it loads the weights."""
    whole = json.loads((folder / file).read_text())
    outcomes = []
    own = [field for field in whole if field not in DUMPED or field == "tie_word_embeddings"]
    for field, value in itertools.product(own, ODD):
        (folder / file).write_text(json.dumps({**whole, field: value}))
        try:
            read_settings(folder).tokenizer()
        except (CheckpointError, UnsupportedFamilyError) as error:
            outcomes.append(False)
            assert "mine" in str(error)
        else:
            outcomes.append(True)
    assert 0 < sum(outcomes) < len(outcomes)


@pytest.mark.parametrize("file", [*FILES, "llm/tokenizer.json", "mm_projector/model.safetensors"])
@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"null", b"\xff\xfe", None])
def test_a_file_that_is_something_else_is_read_or_named(
    folder: Path, file: str, junk: bytes | None
) -> None:
    if junk is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(junk)
    try:
        checkpoint = read_settings(folder)
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
    model = load(folder)
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


def test_an_answer_ends_at_the_end_of_a_turn(vila_checkpoint: Path, folder: Path) -> None:
    checkpoint = Checkpoint.open(vila_checkpoint)
    names = [checkpoint.tokenizer().id_to_token(one) for one in checkpoint.stops()]
    assert names == ["<|end_of_text|>", "<|eot_id|>"]
    assert checkpoint.generation(400).eos == checkpoint.stops()
    change_json(folder / "llm" / "generation_config.json", lambda data: data.pop("eos_token_id"))
    change_json(folder / "llm" / "config.json", lambda data: data.pop("eos_token_id"))
    assert Checkpoint.open(folder).stops() == checkpoint.stops()[1:]


def test_a_template_with_places_for_pictures_goes_before_vilas(
    folder: Path, tmp_path: Path
) -> None:
    own = "{% for m in messages %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}{% endfor %}"
    checkpoint = Checkpoint.open(folder)
    assert "language and vision assistant" in checkpoint.chat_template()
    change_json(
        folder / "llm" / "tokenizer_config.json", lambda data: data.update(chat_template=own)
    )
    with pytest.raises(CheckpointError, match="<image>, which is no added token"):
        checkpoint.chat_template()
    added = write_vila(tmp_path / "added", image_token=True)
    change_json(
        added / "llm" / "tokenizer_config.json", lambda data: data.update(chat_template=own)
    )
    assert Checkpoint.open(added).chat_template() == own


def test_a_language_model_of_another_prompt_needs_a_template(folder: Path) -> None:
    text = (folder / "llm" / "tokenizer.json").read_text()
    (folder / "llm" / "tokenizer.json").write_text(text.replace("header_id|>", "heading|>"))
    with pytest.raises(CheckpointError, match=r"llm: no chat template with places for pictures"):
        Checkpoint.open(folder).chat_template()
    config = json.loads((folder / "llm" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == META
