"""The embedding table of a bundle: written, and looked up to compare it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from foveate.bundle.manifest import EMBEDDINGS
from foveate.export.trace import Written
from foveate.modeling.cast_weights import CODES, write_tensors

FILE = "embeddings.safetensors"


def write_embeddings(embedding: nn.Module, folder: Path) -> Written:
    """Write the table [V, H] as the one tensor `EMBEDDINGS` of a safetensors file, of its own float type.

    Args:
        embedding: An embedding layer, on the CPU.
        folder: Where `FILE` is to be.
    """
    assert isinstance(embedding.weight, torch.Tensor)
    table = embedding.weight.detach().contiguous()
    layout = {EMBEDDINGS: (CODES[table.dtype], list(table.shape), table.nbytes)}
    with open(folder / FILE, "wb") as out:
        write_tensors(layout, [table], out)
    return {EMBEDDINGS: FILE}, {}


def look_up(path: Path, token_ids: NDArray[np.int64]) -> NDArray[Any]:
    """Rows [N, H] of a written table for token ids int64 [N]; bfloat16 as float32."""
    with safe_open(str(path), framework="pt") as file:
        rows = file.get_tensor(EMBEDDINGS)[torch.from_numpy(token_ids)]
    return np.asarray(rows.float() if rows.dtype == torch.bfloat16 else rows)
