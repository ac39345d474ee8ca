"""What a compressor of contrib operators takes: visual tokens first, then text, padded."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.families.base import Prompt
from foveate.runtime.backends.buckets import padded, rounded
from foveate.runtime.tensors import DeviceTensor


def compressor_inputs(
    prompt: Prompt, text_embeds: NDArray[np.generic], keep: int, unit: int
) -> dict[str, NDArray[Any]]:
    """The graph's inputs beside the visual tokens.

    Text and instruction are padded to multiples of `unit`. Padding stands after the prompt, where no
    token attends to it, and has weight 0.

    Args:
        prompt: The prompt.
        text_embeds: [N_t, H], the embedding rows of its text.
        keep: How many visual tokens to keep.
        unit: 1 pads nothing.

    Returns:
        text_embeds [N_t, H], places int64 [N_v + N_t], position_ids int64 [N_v + N_t, A],
        instruction_rows int64 [N_u], instruction_weights float32 [N_u] and keep int64 [1].
    """
    visual, length = len(prompt.visual_index), prompt.position_ids.shape[1]
    instruction = prompt.instruction_rows
    more = rounded(len(text_embeds), unit) - len(text_embeds)
    places = np.concatenate(
        [prompt.visual_index, prompt.text_index, np.arange(length, length + more)]
    )
    unweighted = rounded(len(instruction), unit) - len(instruction)
    weights = np.full(len(instruction), 1 / len(instruction), np.float32)
    return {
        "text_embeds": padded(text_embeds, more),
        "places": places,
        "position_ids": padded(prompt.position_ids.T[places[:length]], more),
        "instruction_rows": padded(instruction, unweighted) + visual,
        "instruction_weights": padded(weights, unweighted),
        "keep": np.array([keep], dtype=np.int64),
    }


class KeptIndices:
    """Ordinals of the kept visual tokens int64 [K], among the rows of a kept prompt; see `Readable`."""

    def __init__(self, rows: DeviceTensor, visual: int) -> None:
        """View `rows` int64 [T']; those below `visual` are the visual tokens'."""
        self.rows, self.visual = rows, visual

    def numpy(self) -> NDArray[np.int64]:
        """Copy to host memory."""
        rows: NDArray[np.int64] = self.rows.numpy()
        return rows[rows < self.visual]
