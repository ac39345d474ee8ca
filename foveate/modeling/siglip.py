"""SigLIP's vision tower: square tiles to the hidden states of one of its layers, in torch and in contrib operators."""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn
from transformers import SiglipVisionModel

from foveate.errors import CheckpointError, ExportError
from foveate.modeling.attention import TILES
from foveate.modeling.graph_builder import UINT8, GraphBuilder

ACTIVATIONS = {"gelu_pytorch_tanh": "FastGelu", "gelu": "Gelu", "quick_gelu": "QuickGelu"}
"""Contrib operators by the names of activations that they compute."""


class SiglipTower(nn.Module):
    """The embeddings and the layers of a tower up to one, without its last norm and its head."""

    def __init__(self, tower: SiglipVisionModel, feature_layer: int) -> None:
        """Take the parts of `tower`, whose attention is changed to a form that can be traced.

        Args:
            tower: The whole tower.
            feature_layer: See `layers_up_to`.

        Raises:
            CheckpointError: The tower has no such layer.
        """
        super().__init__()
        tower.set_attn_implementation(TILES)
        self.embeddings = tower.embeddings
        self.layers = layers_up_to(tower, feature_layer)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Hidden states [N, P, C] of normalised tiles float32 [N, 3, side, side], P patches of each in rows."""
        hidden: Tensor = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=None)
        return hidden


def layers_up_to(tower: SiglipVisionModel, feature_layer: int) -> nn.ModuleList:
    """The layers whose last one's output is the tower's hidden state of this number.

    Args:
        tower: The whole tower.
        feature_layer: 0 is the embeddings, and n the output of the n-th layer; from the end, -1 is that of
            the last layer, before the tower's last norm.

    Raises:
        CheckpointError: The tower has no such layer.
    """
    layers: nn.ModuleList = tower.encoder.layers
    count = feature_layer if feature_layer >= 0 else len(layers) + 1 + feature_layer
    if not 0 <= count <= len(layers):
        raise CheckpointError(
            f"the vision feature layer is {feature_layer}, and the vision tower has {len(layers)} "
            f"layers; give one from {-len(layers) - 1} to {len(layers)}"
        )
    found = layers[:count]
    assert isinstance(found, nn.ModuleList)
    return found


def grid_side(tower: SiglipVisionModel) -> int:
    """Patches along each side of a tile; pixels beyond the last whole patch are not seen."""
    return int(tower.config.image_size) // int(tower.config.patch_size)


def tiles_input(graph: GraphBuilder, tower: SiglipVisionModel) -> ir.Value:
    """The graph's input `levels` uint8 [tiles, side, side, 3], the 8-bit levels of tiles."""
    side = int(tower.config.image_size)
    return graph.input("levels", UINT8, ["tiles", side, side, 3])


def tower_states(
    graph: GraphBuilder,
    tower: SiglipVisionModel,
    feature_layer: int,
    levels: ir.Value,
    factor: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> ir.Value:
    """The tower in contrib operators: 8-bit levels of tiles to hidden states [N, P, C].

    Args:
        graph: The graph being built.
        tower: The weights.
        feature_layer: See `layers_up_to`.
        levels: What `tiles_input` gave.
        factor: Multiplies the levels.
        mean: For red, green, blue, after that.
        std: For red, green, blue, after that.

    Raises:
        CheckpointError: The tower has no such layer.
        ExportError: An activation that the contrib operators lack.
    """
    config, layers = tower.config, layers_up_to(tower, feature_layer)
    if config.hidden_act not in ACTIVATIONS:
        raise ExportError(
            f"the vision tower's activation {config.hidden_act} has no contrib operator; "
            "export with --operators standard"
        )
    patch, embedding = int(config.patch_size), tower.embeddings.patch_embedding
    patches = _patches(graph, levels, grid_side(tower), patch)
    hidden = graph.linear(
        graph.normalised(patches, factor, mean, std, patch**2), "patch_embedding",
        embedding.weight.permute(0, 2, 3, 1).flatten(1), embedding.bias,
    )  # fmt: skip
    places = tower.embeddings.position_embedding.weight
    hidden = graph.op("Add", hidden, graph.weight("position_embedding", places))
    for number, layer in enumerate(layers):
        hidden = _layer(graph, hidden, f"layers.{number}", layer, config)
    return hidden


def _patches(graph: GraphBuilder, levels: ir.Value, grid: int, patch: int) -> ir.Value:
    """8-bit levels of tiles cut into patches, uint8 [N, grid², patch² · 3]."""
    seen = graph.op("Slice", levels, [0, 0], [grid * patch] * 2, [1, 2])
    cut = graph.op("Reshape", seen, [0, grid, patch, grid, patch * 3])
    ordered = graph.op("Transpose", cut, perm=[0, 1, 3, 2, 4])
    return graph.op("Reshape", ordered, [0, grid**2, patch**2 * 3])


def _layer(graph: GraphBuilder, hidden: ir.Value, name: str, layer: Any, config: Any) -> ir.Value:
    """One layer's output [N, P, C]."""
    first, own = layer.layer_norm1, layer.self_attn
    normed = graph.op(
        "LayerNormalization", hidden,
        graph.weight(f"{name}.layer_norm1.weight", first.weight),
        graph.weight(f"{name}.layer_norm1.bias", first.bias),
        axis=-1, epsilon=first.eps,
    )  # fmt: skip
    parts = {"q_proj": own.q_proj, "k_proj": own.k_proj, "v_proj": own.v_proj}
    states = [graph.layer(normed, f"{name}.{part}", linear) for part, linear in parts.items()]
    attended = graph.attention(states, config.num_attention_heads)
    attended = graph.linear(attended, f"{name}.out_proj", own.out_proj.weight, None)
    bias = graph.weight(f"{name}.out_proj.bias", own.out_proj.bias)
    normed, hidden = graph.skip_layer_norm(
        hidden, attended, f"{name}.layer_norm2", layer.layer_norm2, bias
    )
    wide = graph.layer(normed, f"{name}.fc1", layer.mlp.fc1)
    wide = graph.contrib(ACTIVATIONS[config.hidden_act], wide)
    return graph.op("Add", hidden, graph.layer(wide, f"{name}.fc2", layer.mlp.fc2))
