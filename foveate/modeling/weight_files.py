"""A checkpoint's weights on disk: which files they are in, and whether they are whole and finite."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from foveate.errors import CheckpointError
from foveate.families.settings_file import read_json, reading
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.fields import brief, read_as

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "download the checkpoint again"
FLOATS = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2"}
"""Types that can hold what is not finite, and what their bits are read as."""
EXPONENTS = {"F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "F16": 0x7C00, "BF16": 0x7F80}
"""Bits that are all set in infinity and in what is not a number, and in nothing else."""
LARGEST_HALF = 65504.0
CHUNK = 1 << 24
TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"
"""How the names of the embedding table and of the output layer end."""
PACKED = (
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".absmax",
    ".quant_map",
    ".weight_packed",
    ".SCB",
)
ADAPTER = ("lora_A", "lora_B", "lora_magnitude")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a safetensors file.

    Attributes:
        dtype: Its type as safetensors names it.
        shape: Its shape.
        begin: Where it begins in the file, in bytes.
        size: Its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


def read_headers(checkpoint: Checkpoint) -> dict[Path, dict[str, Entry]]:
    """The tensors of each file that holds a checkpoint's weights; others of its folders are not read.

    Raises:
        CheckpointError: There are none, one that the index names is missing, or one is damaged.
    """
    found: dict[Path, dict[str, Entry]] = {}
    for folder in checkpoint.form.weights:
        found |= read_folder(checkpoint, folder)
    return found


def read_folder(checkpoint: Checkpoint, folder: str) -> dict[Path, dict[str, Entry]]:
    """The tensors of each file that holds the weights of one of a checkpoint's folders, "" for its own.

    Raises:
        CheckpointError: As `read_headers`.
    """
    root, shown = checkpoint.root / folder, partial(_shown, checkpoint, folder)
    if (root / SINGLE).is_file():
        return {root / SINGLE: read_header(root / SINGLE, shown(SINGLE))}
    if not (root / INDEX).is_file():
        raise CheckpointError(
            f"{shown(SINGLE)}: cannot load the weights, the file is missing and so is {INDEX}; "
            f"{AGAIN}, in safetensors' format"
        )
    index = shown(INDEX)
    placed = read_as(
        dict[str, str], read_json(root / INDEX).get("weight_map"), f"{index}: weight_map"
    )
    names = sorted(set(placed.values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(
                f"{index} names the file {brief(name)}, outside the folder; {AGAIN}"
            )
        if not (root / name).is_file():
            raise CheckpointError(
                f"{shown(name)}: the file is missing, which {INDEX} names; {AGAIN}"
            )
    if not names:
        raise CheckpointError(f"{index} names no file of weights; {AGAIN}")
    headers = {root / name: read_header(root / name, shown(name)) for name in names}
    for tensor, name in placed.items():
        if tensor not in headers[root / name]:
            raise CheckpointError(
                f"{shown(name)}: {brief(tensor)} is not in it, where {INDEX} says it is; {AGAIN}"
            )
    return headers


def _shown(checkpoint: Checkpoint, folder: str, file: str) -> str:
    """A file of one of a checkpoint's folders as the user would name it."""
    return checkpoint.shown(f"{folder}/{file}" if folder else file)


def read_header(file: Path, shown: str) -> dict[str, Entry]:
    """Each tensor of a safetensors file, which the user knows as `shown`, by its name.

    Raises:
        CheckpointError: The file is damaged or cut short.
    """
    with reading(shown, "weights in safetensors' format", f"cannot load it: {AGAIN}"):
        # The library checks everything that the header says.
        with safe_open(str(file), framework="np"):
            pass
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        return {
            name: Entry(
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
        }


def check_weights(
    checkpoint: Checkpoint, *, half: bool = False, say: Callable[[str], None] = lambda detail: None
) -> None:
    """Refuse weights that are missing, damaged, quantized, an adapter's, or not finite.

    Every byte is read once: about a second a gigabyte. Rows of an embedding table that is not also the
    output layer count for prompts with their tokens alone, and those are refused at run time.

    Args:
        checkpoint: Whose weights.
        half: Whether they are to become float16, beyond whose range a weight would be infinite.
        say: Told which tensor is being read.

    Raises:
        CheckpointError: There are some; the message names file and tensor.
    """
    headers = read_headers(checkpoint)
    untied = any(name.endswith(HEAD) for header in headers.values() for name in header)
    for file, header in headers.items():
        shown = checkpoint.shown(file.relative_to(checkpoint.root).as_posix())
        _check_names(header, shown)
        data = np.memmap(file, np.uint8, "r")
        for name, entry in header.items():
            if entry.dtype.startswith("F8"):
                raise CheckpointError(
                    f"{shown}: {name} is quantized to {entry.dtype}; export the original weights"
                )
            say(name)
            if entry.dtype in FLOATS and entry.size:
                bits = data[entry.begin : entry.begin + entry.size].view(FLOATS[entry.dtype])
                rows = untied and name.endswith(TABLE)
                _check_finite(bits, entry.dtype, f"{shown}: {name}", half=half, rows=rows)


def _check_names(header: Mapping[str, Entry], shown: str) -> None:
    """CheckpointError for tensors that only quantized weights or adapters have."""
    for name in header:
        if name.endswith(PACKED):
            raise CheckpointError(
                f"{shown}: {name} belongs to quantized weights, which Foveate cannot export; export the "
                "original weights that they were made from"
            )
        if any(part in name for part in ADAPTER):
            raise CheckpointError(
                f"{shown}: {name} belongs to an adapter; merge it into the model's weights (PEFT's "
                "merge_and_unload), save the result and export that"
            )


def _check_finite(
    bits: NDArray[np.unsignedinteger], dtype: str, tensor: str, *, half: bool, rows: bool
) -> None:
    """CheckpointError for a tensor with values that are not finite, or would not be in float16.

    Args:
        bits: The tensor's, flat.
        dtype: Its type as safetensors names it.
        tensor: Its file and name.
        half: Whether it is to become float16.
        rows: Whether values may be other than finite as they are, being of single rows.
    """
    infinite = EXPONENTS[dtype]
    for chunk in _chunks(bits):
        magnitude = chunk & np.array(infinite | _fraction(dtype), chunk.dtype)
        if rows:
            magnitude = magnitude[magnitude < infinite]
        largest = int(magnitude.max(initial=0))
        if largest >= infinite:
            raise CheckpointError(
                f"{tensor} holds values that are not finite (NaN or infinity); the weights themselves are "
                f"at fault: {AGAIN}, or train it again"
            )
        if half and dtype != "F16" and _as_float(largest, dtype) > LARGEST_HALF:
            raise CheckpointError(
                f"{tensor} holds {_as_float(largest, dtype):.3g}, beyond float16's {LARGEST_HALF:.0f}; "
                "export with --precision bf16 or fp32"
            )


def _chunks(bits: NDArray[np.unsignedinteger]) -> Iterator[NDArray[np.unsignedinteger]]:
    """An array in parts that are small in memory."""
    yield from (bits[begin : begin + CHUNK] for begin in range(0, len(bits), CHUNK))


def _fraction(dtype: str) -> int:
    """The bits below the exponent."""
    lowest = EXPONENTS[dtype] & -EXPONENTS[dtype]
    return lowest - 1


def _as_float(bits: int, dtype: str) -> float:
    """What bits of a type stand for."""
    if dtype == "BF16":
        return float(np.array(bits << 16, np.uint32).view(np.float32))
    kind = {"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]
    return float(np.array(bits, FLOATS[dtype]).view(kind))
