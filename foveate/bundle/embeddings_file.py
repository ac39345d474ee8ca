"""The header of a bundle's embedding table: a safetensors file of one tensor."""

from pathlib import Path
from typing import Literal

import msgspec

from foveate.bundle.manifest import Count, DType, ModelFacts, Size
from foveate.bundle.manifest_json import parse

TYPES: dict[str, tuple[DType, int]] = {
    "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
}  # fmt: skip
"""The types of safetensors that a table may have, the manifest's names of them, and their bytes."""
HEADER_LIMIT = 1 << 16


class TableEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the header says of the table: its type, [V, H] and where its bytes are in the data."""

    dtype: Literal["F32", "F16", "BF16"]
    shape: tuple[Count, Count]
    data_offsets: tuple[Size, Size]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header of a safetensors file that holds the table and nothing else."""

    embeddings: TableEntry
    metadata: dict[str, str] = msgspec.field(default_factory=dict, name="__metadata__")


def read_table(path: Path, model: ModelFacts) -> tuple[TableEntry, int]:
    """Read what a file says of its table, and the byte at which its data begin.

    Raises:
        ValueError: It does not hold a table of the model's sizes, or something else beside it; or its
            data are not all there.
        RecursionError: The header nests too deep.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= HEADER_LIMIT:
            raise ValueError(f"its header has {length} bytes")
        entry = msgspec.convert(parse(file.read(length)), Header).embeddings
    count, width = entry.shape
    begin, nbytes = 8 + length, count * width * TYPES[entry.dtype][1]
    if entry.data_offsets != (0, nbytes):
        raise ValueError(f"its data_offsets are {list(entry.data_offsets)}, not [0, {nbytes}]")
    if path.stat().st_size != begin + nbytes:
        raise ValueError(f"it has {path.stat().st_size} bytes, not {begin + nbytes}")
    if width != model.hidden_size or count < model.vocabulary:
        raise ValueError(
            f"it is {count} x {width}, for a model of {model.vocabulary} x {model.hidden_size}"
        )
    return entry, begin
