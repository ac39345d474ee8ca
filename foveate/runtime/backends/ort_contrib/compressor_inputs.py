"""The rows that a fused compressor ranks and keeps: visual tokens first, then text, filled up."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.runtime.backends.ort_contrib.buckets import lengthened, rounded
from foveate.runtime.tensors import Feeds, Value, on_host


def arrange(feeds: Feeds, unit: int) -> dict[str, Any]:
    """What a fused compressor takes beside the visual tokens, from what compressors take.

    Text and instruction are filled up to multiples of `unit`. What fills up stands after the prompt,
    where no token looks, and counts nothing.

    Args:
        feeds: Of the compressor graph, as `foveate.export.compressor` has them.
        unit: 1 fills nothing up.

    Returns:
        text_embeds [N_t, H], places int64 [N_v + N_t], position_ids int64 [N_v + N_t, A],
        instruction_rows int64 [N_u], instruction_weights float32 [N_u] and keep int64 [1].
    """
    text, asked = on_host(feeds["text_embeds"]), on_host(feeds["instruction_rows"])
    visual_index, positions = on_host(feeds["visual_index"]), on_host(feeds["position_ids"])
    visual, prompt = len(visual_index), positions.shape[1]
    more = rounded(len(text), unit) - len(text)
    places = np.concatenate(
        [visual_index, on_host(feeds["text_index"]), np.arange(prompt, prompt + more)]
    )
    uncounted = rounded(len(asked), unit) - len(asked)
    return {
        "text_embeds": lengthened(text, more),
        "places": places,
        "position_ids": lengthened(positions.T[places[:prompt]], more),
        "instruction_rows": lengthened(asked, uncounted) + visual,
        "instruction_weights": lengthened(
            np.full(len(asked), 1 / len(asked), np.float32), uncounted
        ),
        "keep": feeds["keep"],
    }


class KeptIndices:
    """Ordinals of the kept visual tokens, int64 [K], among the rows of a kept prompt; see `Value`."""

    def __init__(self, rows: Value, visual: int, kept: int) -> None:
        """Look at `rows` int64 [K + N_t], those below `visual` are the visual tokens'."""
        self.rows, self.visual, self.kept = rows, visual, kept

    def shape(self) -> list[int]:
        """Its sizes."""
        return [self.kept]

    def numpy(self) -> NDArray[np.int64]:
        """Copy to host memory."""
        rows: NDArray[np.int64] = self.rows.numpy()
        return rows[rows < self.visual]
