"""A checkpoint's weights in another precision, one tensor in memory at a time.

transformers maps weights that already have the wanted type, and copies them where it converts: twice the
checkpoint in memory. safetensors' own writer wants all tensors at once too, so its format (a length, a
JSON header, the bytes) is written here.
"""

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from foveate.errors import CheckpointError
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.weight_files import Entry, read_headers

Layout = dict[str, tuple[str, list[int], int]]
"""For each tensor by name its type as safetensors names it, its shape and its bytes."""
CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def cast_weights(checkpoint: Checkpoint, dtype: torch.dtype, folder: Path) -> Checkpoint:
    """The checkpoint itself if its weights are of `dtype`, else a copy in `folder` whose weights are.

    Raises:
        CheckpointError: A weights file that cannot be read.
    """
    headers = read_headers(checkpoint)
    codes = {entry.dtype for header in headers.values() for entry in header.values()}
    if not codes & (set(CODES.values()) - {CODES[dtype]}):
        return checkpoint
    for place in ("", *checkpoint.form.weights):
        (folder / place).mkdir(exist_ok=True)
        for path in (checkpoint.root / place).glob("*.json"):
            shutil.copyfile(path, folder / place / path.name)
    for shard, header in headers.items():
        with open(folder / shard.relative_to(checkpoint.root), "wb") as out:
            write_shard(shard, header, dtype, out)
    return replace(checkpoint, root=folder)


def write_shard(shard: Path, header: dict[str, Entry], dtype: torch.dtype, out: BinaryIO) -> None:
    """Write a safetensors file's tensors, those of floating point as `dtype`."""
    layout: Layout = {}
    for name, entry in header.items():
        floats = entry.dtype in CODES.values()
        size = math.prod(entry.shape) * dtype.itemsize if floats else entry.size
        layout[name] = (CODES[dtype] if floats else entry.dtype, list(entry.shape), size)
    write_tensors(layout, (read_tensor(shard, name, dtype) for name in header), out)


def write_tensors(layout: Layout, tensors: Iterable[torch.Tensor], out: BinaryIO) -> None:
    """Write a safetensors file; its data begins at a multiple of 8 bytes.

    Args:
        layout: What is to come, in order.
        tensors: On the CPU and contiguous; one at a time is held.
        out: The file.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (code, shape, size) in layout.items():
        begin, end = end, end + size
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def read_tensor(shard: Path, name: str, dtype: torch.dtype) -> torch.Tensor:
    """One tensor; the file is opened for it alone, so that no page of another stays mapped."""
    try:
        with safe_open(str(shard), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{shard}: cannot load {name} ({error}); download the checkpoint again"
        ) from error
    return tensor.to(dtype).contiguous() if tensor.dtype in CODES else tensor.contiguous()
