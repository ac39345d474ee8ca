"""The bundle's embedding table, memory-mapped on the host: a safetensors file of one tensor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, BundleError
from foveate.runtime.tensors import held

ROLE = "embeddings"
TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The types of safetensors that a table may have, and the manifest's names of them."""
HEADER_LIMIT = 1 << 16


class EmbeddingTable:
    """Embedding rows by token id; bfloat16 is held as uint16.

    Attributes:
        dtype: The rows' type, in the manifest's words.
        rows: [V, H], mapped from the file.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Map the table.

        Raises:
            BundleError: The file does not hold one table of the manifest's width.
        """
        path, width = bundle.file(ROLE), bundle.manifest.model.hidden_size
        try:
            entry, begin = read_header(path)
            self.dtype = TYPES[entry["dtype"]]
            count, columns = entry["shape"]
            first, last = entry["data_offsets"]
            nbytes = count * columns * held(self.dtype).itemsize
            whole = begin + last == path.stat().st_size
            if columns != width or first or last != nbytes or not whole or count < 1:
                raise ValueError("its sizes do not fit")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(
                f"{path} does not hold one table of {width} columns ({error}). Export the checkpoint "
                "again."
            ) from error
        self.rows: NDArray[np.generic] = np.memmap(
            path, dtype=held(self.dtype), mode="r", offset=begin, shape=(count, width)
        )

    def look_up(self, token_ids: NDArray[np.int64]) -> NDArray[np.generic]:
        """The rows [N, H] of token ids int64 [N].

        Raises:
            BackendError: An id that the table does not have.
        """
        count = len(self.rows)
        if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < count:
            raise BackendError(f"a token id is outside the table's {count} rows")
        return np.asarray(self.rows[token_ids])


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file of one tensor says of it, and where its data begin.

    Raises:
        ValueError: It is none, or holds several.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= HEADER_LIMIT:
            raise ValueError("it has no header")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    (entry,) = header.values()
    return entry, 8 + length
