"""The bundle's embedding table, memory-mapped on the host: a safetensors file of one tensor."""

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.embeddings_file import TYPES
from foveate.bundle.reader import Bundle
from foveate.bundle.reading import reading
from foveate.errors import BackendError
from foveate.runtime.finite import DAMAGED, check_finite
from foveate.runtime.tensors import held


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
        path, entry, begin = bundle.embeddings()
        self.dtype = TYPES[entry.dtype][0]
        # Where activations are quantized, NaN becomes a number and is never seen again.
        self._checked = bundle.manifest.precision in ("int8", "fp8")
        with reading(path):
            self.rows: NDArray[np.generic] = np.memmap(
                path, dtype=held(self.dtype), mode="r", offset=begin, shape=entry.shape
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
