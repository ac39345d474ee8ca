"""The bundle's embedding table, memory-mapped on the host: a safetensors file of one tensor."""

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import EMBEDDINGS, Count, Natural, parse, short
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, BundleError
from foveate.runtime.finite import DAMAGED, check_finite
from foveate.runtime.tensors import held

TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The types of safetensors that a table may have, and the manifest's names of them."""
HEADER_LIMIT = 1 << 16


class TableEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the header says of the table: its type, [V, H] and where its bytes are in the data."""

    dtype: Literal["F32", "F16", "BF16"]
    shape: tuple[Count, Count]
    data_offsets: tuple[Natural, Natural]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header of a safetensors file that holds the table and nothing else."""

    embeddings: TableEntry
    metadata: dict[str, str] = msgspec.field(default_factory=dict, name="__metadata__")


class EmbeddingTable:
    """Embedding rows by token id; bfloat16 is held as uint16.

    Attributes:
        dtype: The rows' type, in the manifest's words.
        rows: [V, H], mapped from the file.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Map the table.

        Raises:
            BundleError: The file does not hold one table of the manifest's sizes.
        """
        path, model = bundle.file(EMBEDDINGS), bundle.manifest.model
        try:
            entry, begin = read_header(path)
            count, width = entry.shape
            if width != model.hidden_size or count < model.vocabulary:
                raise ValueError(
                    f"it is {count} x {width}, for a model of {model.vocabulary} x {model.hidden_size}"
                )
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"{path} does not hold the embedding table: {short(error)}. Export the checkpoint "
                "again."
            ) from error
        self.dtype = TYPES[entry.dtype]
        # Where activations are quantized, NaN becomes a number and is never seen again.
        self._checked = bundle.manifest.precision in ("int8", "fp8")
        self.rows: NDArray[np.generic] = np.memmap(
            path, dtype=held(self.dtype), mode="r", offset=begin, shape=(count, width)
        )

    def look_up(self, token_ids: NDArray[np.int64]) -> NDArray[np.generic]:
        """Gather the rows [N, H] of token ids int64 [N].

        Raises:
            BackendError: An id that the table does not have, or a row that is not finite where the graphs
                would hide it.
        """
        count = len(self.rows)
        if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < count:
            raise BackendError(f"a token id is outside the table's {count} rows")
        rows = np.asarray(self.rows[token_ids])
        if self._checked:
            check_finite(rows, "embeddings of the prompt's or the answer's tokens", DAMAGED)
        return rows


def read_header(path: Path) -> tuple[TableEntry, int]:
    """Read what a safetensors file says of its table, and the byte at which its data begin.

    Raises:
        ValueError: It holds no table, or something else beside it; or its data are not all there.
        RecursionError: The header nests too deep.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= HEADER_LIMIT:
            raise ValueError(f"its header has {length} bytes")
        entry = msgspec.convert(parse(file.read(length)), Header).embeddings
    count, width = entry.shape
    begin, nbytes = 8 + length, count * width * held(TYPES[entry.dtype]).itemsize
    if entry.data_offsets != (0, nbytes):
        raise ValueError(f"its data_offsets are {list(entry.data_offsets)}, not [0, {nbytes}]")
    if path.stat().st_size != begin + nbytes:
        raise ValueError(f"it has {path.stat().st_size} bytes, not {begin + nbytes}")
    return entry, begin
