"""Embedding rows looked up in the bundle's own table, without a library that runs graphs."""

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.onnx_file import external_tensors
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, BundleError
from foveate.runtime.tensors import held

ROLE = "embeddings"


class EmbeddingTable:
    """The weights of the embeddings graph, mapped from their file; bfloat16 is held as uint16.

    Attributes:
        rows: [V, H].
    """

    def __init__(self, bundle: Bundle) -> None:
        """Map the table.

        Raises:
            BundleError: The graph does not hold one table of the manifest's size.
        """
        (output,) = bundle.graph(ROLE).outputs
        dtype, width = held(output.dtype), bundle.manifest.model.hidden_size
        path = bundle.file(ROLE)
        tensors = external_tensors(path)
        whole = f"{path} does not hold one table of {width} columns. Export the checkpoint again."
        try:
            (entry,) = tensors
            offset, length = int(entry.get("offset", "0")), int(entry["length"])
        except (KeyError, ValueError) as error:
            raise BundleError(whole) from error
        count, rest = divmod(length, width * dtype.itemsize)
        file = path.parent / entry["location"]
        if rest or not count or offset < 0 or offset + length > file.stat().st_size:
            raise BundleError(whole)
        self.rows: NDArray[np.generic] = np.memmap(
            file, dtype=dtype, mode="r", offset=offset, shape=(count, width)
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
