"""SigLIP's tower as Foveate runs it, against transformers' own; float32 tolerances cover another order of sums.

The traced graph is compared with every export of a checkpoint that has such a tower.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import SiglipVisionConfig, SiglipVisionModel

from foveate.errors import CheckpointError, ExportError
from foveate.families.tiles import TileSettings, tiles_call
from foveate.modeling.graph_builder import GraphBuilder
from foveate.modeling.siglip import SiglipTower, grid_side, tiles_input, tower_states

SIDE, PATCH, GRID, WIDTH = 30, 4, 7, 24
CLOSE = {"rtol": 0, "atol": 2e-5}
SETTINGS = TileSettings(side=SIDE, image_mean=(0.4, 0.5, 0.6), image_std=(0.5, 0.6, 0.7))


def tower(activation: str = "gelu_pytorch_tanh") -> SiglipVisionModel:
    """Three layers over 7 x 7 patches of 4 pixels, two pixels left over on each side."""
    torch.manual_seed(3)
    config = SiglipVisionConfig(
        hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2,
        image_size=SIDE, patch_size=PATCH, hidden_act=activation, vision_use_head=False,
    )  # fmt: skip
    model = SiglipVisionModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def levels(count: int) -> NDArray[np.uint8]:
    """Tiles of random levels."""
    random = np.random.default_rng(count)
    return random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def expected(model: SiglipVisionModel, tiles: NDArray[np.uint8], layer: int) -> NDArray[np.float32]:
    """What transformers gives as the hidden state of this number."""
    pixels = tiles_call(tiles, GRID**2, SETTINGS.table).inputs["pixel_values"]
    with torch.no_grad():
        states = model(torch.from_numpy(pixels), output_hidden_states=True).hidden_states
    found: NDArray[np.float32] = states[layer].numpy()
    return found


def run(path: Path, feeds: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    """What onnxruntime computes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feeds)
    return np.asarray(found)


@pytest.mark.parametrize("layer", [-1, -2, 0, 3])
def test_the_hidden_state_asked_for_comes_before_the_last_norm(layer: int) -> None:
    model, tiles = tower(), levels(3)
    wanted = expected(model, tiles, layer)
    pixels = tiles_call(tiles, GRID**2, SETTINGS.table).inputs["pixel_values"]
    with torch.no_grad():
        found = SiglipTower(model, layer)(torch.from_numpy(pixels))
    np.testing.assert_allclose(found.numpy(), wanted, **CLOSE)
    assert grid_side(model) == GRID


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_the_tower_lacks_is_refused(layer: int) -> None:
    with pytest.raises(CheckpointError, match=rf"feature layer is {layer}, .* has 3 layers"):
        SiglipTower(tower(), layer)


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_the_contrib_graph_takes_levels_of_any_number_of_tiles(
    tmp_path: Path, activation: str
) -> None:
    model = tower(activation)
    graph = GraphBuilder(torch.float32)
    states = tower_states(
        graph, model, -2, tiles_input(graph, model),
        SETTINGS.rescale_factor, SETTINGS.image_mean, SETTINGS.image_std,
    )  # fmt: skip
    outputs = {"states": (states, graph.dtype, ["tiles", GRID**2, WIDTH])}
    ir.save(graph.model("vision", outputs), tmp_path / "vision.onnx")
    for count in (1, 5):
        call = tiles_call(levels(count), GRID**2, None)
        found = run(tmp_path / "vision.onnx", dict(call.inputs))
        np.testing.assert_allclose(found, expected(model, levels(count), -2), **CLOSE)


def test_an_activation_without_contrib_operator_is_refused() -> None:
    graph, model = GraphBuilder(torch.float32), tower("relu")
    with pytest.raises(ExportError, match="relu has no contrib operator; export with --operators"):
        tower_states(graph, model, -1, tiles_input(graph, model), 1.0, (0, 0, 0), (1, 1, 1))
