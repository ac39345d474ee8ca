"""VILA1.5's torch half: the published layout loaded, and each part against what it is built from."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, SiglipVisionModel

from foveate.calibration.provenance import checkpoint_facts
from foveate.errors import CheckpointError
from foveate.modeling.cast_weights import cast_weights
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.families import torch_family
from foveate.modeling.random_weights import count_parameters
from foveate.modeling.vila import Vila
from foveate.modeling.vila_projector import Projector
from foveate.modeling.weight_files import check_weights
from tests.vila_checkpoints import load_vila, write_vila


@pytest.fixture(scope="module")
def model(vila_checkpoint: Path) -> Vila:
    return load_vila(vila_checkpoint)


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
    whole = load_vila(vila_checkpoint)
    for (name, one), (_, other) in zip(
        load_vila(sharded).state_dict().items(), whole.state_dict().items(), strict=True
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
    cast, whole = load_vila(copy.root, torch.float16), load_vila(vila_checkpoint)
    for (name, one), (_, other) in zip(
        cast.state_dict().items(), whole.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other.to(one.dtype)), name
    assert cast.dtype == torch.float16


def test_a_checkpoint_is_known_by_all_its_files(vila_folder: Path) -> None:
    before = checkpoint_facts(str(vila_folder))
    weights = load_file(vila_folder / "mm_projector" / "model.safetensors")
    weights["layers.4.bias"] += 1
    save_file(weights, vila_folder / "mm_projector" / "model.safetensors")
    after = checkpoint_facts(str(vila_folder))
    assert before["family"] == "vila"
    assert before["checkpoint_sha256"] != after["checkpoint_sha256"]


def test_weights_that_are_not_finite_are_refused_by_file(vila_folder: Path) -> None:
    file = vila_folder / "mm_projector" / "model.safetensors"
    weights = load_file(file)
    weights["layers.2.weight"][0, 0] = float("nan")
    save_file(weights, file)
    with pytest.raises(
        CheckpointError, match=r"mm_projector/model\.safetensors: layers\.2\.weight"
    ):
        check_weights(Checkpoint.open(vila_folder))


@pytest.mark.parametrize("change", ["layers.4.bias", "more", "layers.2.weight"])
def test_a_projector_of_other_weights_is_refused(vila_folder: Path, change: str) -> None:
    file = vila_folder / "mm_projector" / "model.safetensors"
    weights = load_file(file)
    if change == "more":
        weights["layers.5.weight"] = torch.zeros(2)
    elif change == "layers.2.weight":
        weights[change] = weights[change][:, :-4].contiguous()
    else:
        del weights[change]
    save_file(weights, file)
    named = "layers.5.weight" if change == "more" else change
    with pytest.raises(
        CheckpointError, match=f"mine/mm_projector: 1 weights .*{re.escape(named)} first"
    ):
        load_vila(vila_folder)


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
