"""VILA1.5's projector: 2 x 2 patches of the vision tower to one visual token."""

import onnx_ir as ir
import torch
from torch import Tensor, nn

from foveate.errors import CheckpointError
from foveate.families.vila_settings import ORDERS, PROJECTOR
from foveate.modeling.cast_weights import read_tensor
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.graph_builder import GraphBuilder
from foveate.modeling.weight_files import AGAIN, read_folder

MERGED = 4
"""Patches of a token."""


class Downsample(nn.Module):
    """Puts each 2 x 2 patches of a square grid together; an odd grid is padded with zeros below and right."""

    def __init__(self, order: str) -> None:
        """Give tokens column by column, or row by row where `order` is "rows"."""
        super().__init__()
        self.order = order

    def forward(self, states: Tensor) -> Tensor:
        """Blocks [N, ceil(g / 2)², 4 · C] of the patches [N, g², C] of N pictures.

        In a block stand the patches of (row, column), (row, column + 1), and those below them.
        """
        grid, width = round(states.shape[1] ** 0.5), states.shape[2]
        across, odd = (grid + 1) // 2, grid % 2
        square = states.reshape(-1, grid, grid, width)
        padded = nn.functional.pad(square, (0, 0, 0, odd, 0, odd))
        blocks = padded.reshape(-1, across, 2, across, 2 * width)
        turned = (
            blocks.permute(0, 3, 1, 2, 4) if self.order == "columns" else blocks.transpose(2, 3)
        )
        return turned.reshape(-1, across**2, MERGED * width)


class Projector(nn.Module):
    """Blocks of patches to visual tokens; its weights are named as in checkpoints."""

    def __init__(self, kind: str, width: int, hidden: int) -> None:
        """Begin with random weights.

        Args:
            kind: The checkpoint's mm_projector_type.
            width: Numbers of a patch.
            hidden: Numbers of a token of the language model.
        """
        super().__init__()
        self.layers = nn.Sequential(
            Downsample(ORDERS[kind]),
            nn.LayerNorm(MERGED * width),
            nn.Linear(MERGED * width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, states: Tensor) -> Tensor:
        """Visual tokens [N, tokens of a picture, H] of patches [N, g², C]."""
        tokens: Tensor = self.layers(states)
        return tokens

    def init_weights(self) -> None:
        """Draw the weights at random."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear | nn.LayerNorm):
                layer.reset_parameters()


def load_weights(projector: Projector, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Load a checkpoint's weights into its projector.

    Raises:
        CheckpointError: They are missing, of the wrong shape, or more than the projector has.
    """
    wanted = projector.state_dict()
    places = {
        name: file for file, header in read_folder(checkpoint, PROJECTOR).items() for name in header
    }
    tensors = {name: read_tensor(file, name, dtype) for name, file in places.items()}
    wrong = [
        name
        for name in sorted({*wanted, *tensors})
        if name not in wanted or name not in tensors or tensors[name].shape != wanted[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.shown(PROJECTOR)}: {len(wrong)} weights are missing, of the wrong shape or of "
            f"another projector, {wrong[0]} first; correct mm_projector_type or the sizes in the "
            f"config.json files, or {AGAIN}"
        )
    projector.load_state_dict(tensors, assign=True)


def projected(graph: GraphBuilder, states: ir.Value, projector: Projector, grid: int) -> ir.Value:
    """The projector in contrib operators: visual tokens [N · tokens of a picture, H].

    Args:
        graph: The graph being built.
        states: Patches [N, grid², C].
        projector: The weights.
        grid: Patches along each side of a picture.
    """
    downsample, norm, first, _, second = projector.layers
    assert isinstance(downsample, Downsample)
    assert isinstance(norm, nn.LayerNorm)
    width, across = norm.weight.shape[0] // MERGED, (grid + 1) // 2
    square = graph.op("Reshape", states, [-1, grid, grid, width])
    if grid % 2:
        square = graph.op("Pad", square, [0, 0, 0, 0, 0, 1, 1, 0])
    blocks = graph.op("Reshape", square, [-1, across, 2, across, 2 * width])
    turn = [0, 3, 1, 2, 4] if downsample.order == "columns" else [0, 1, 3, 2, 4]
    rows = graph.op("Reshape", graph.op("Transpose", blocks, perm=turn), [-1, MERGED * width])
    normed = graph.op(
        "LayerNormalization", rows,
        graph.weight("projector.norm.weight", norm.weight),
        graph.weight("projector.norm.bias", norm.bias),
        axis=-1, epsilon=norm.eps,
    )  # fmt: skip
    wide = graph.contrib("Gelu", graph.layer(normed, "projector.first", first))
    return graph.layer(wide, "projector.second", second)
