"""f_θ: the small convolutional network that turns first-layer attention into relevance (paper, appendix B)."""

from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.errors import CheckpointError

CHANNELS = (32, 64, 128, 256, 512)
KERNEL = 3


class FTheta(nn.Module):
    """Five depthwise-separable 1-D convolutions and a last pointwise one; any length in, the same length out."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, *CHANNELS)
        self.depthwise = nn.ModuleList(
            nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
            for width in widths[:-1]
        )
        self.pointwise = nn.ModuleList(
            nn.Conv1d(width, wider, 1) for width, wider in pairwise(widths)
        )
        self.head = nn.Conv1d(CHANNELS[-1], 1, 1)

    def forward(self, attention: Tensor) -> Tensor:
        """Predict the logits of visual relevance (Eq. 2 before its softmax).

        Args:
            attention: float32 [B, N_v], the mean first-layer attention A_v⁰ of each visual token.

        Returns:
            float32 [B, N_v]; their softmax is the predicted relevance.
        """
        hidden = attention.unsqueeze(1)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            hidden = torch.relu(pointwise(depthwise(hidden)))
        logits: Tensor = self.head(hidden).squeeze(1)
        return logits

    def save(self, path: Path, facts: dict[str, str]) -> None:
        """Write the weights as safetensors with `facts` (trained on, figures) in the header."""
        save_file(self.state_dict(), str(path), metadata={"kind": "f_theta", **facts})

    @classmethod
    def load(cls, path: Path) -> tuple["FTheta", dict[str, str]]:
        """Read what `save` wrote.

        Raises:
            CheckpointError: No such file, or not the weights of an f_θ.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                facts = dict(file.metadata() or {})
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: no readable safetensors file ({error})") from error
        if facts.pop("kind", None) != "f_theta":
            raise CheckpointError(
                f"{path}: not an f_θ file; make one with `foveate calibrate train`"
            )
        network = cls()
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: not the weights of an f_θ ({error})") from error
        return network.eval(), facts
