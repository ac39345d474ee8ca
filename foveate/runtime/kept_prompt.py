"""The kept prompt: where vision and language meet."""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import BackendError
from foveate.families.base import Prompt
from foveate.runtime.finite import DAMAGED, check_finite
from foveate.runtime.tensors import Readable, Tensor, clear, on_host


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """Which visual tokens were kept, and how relevant each of them all was.

    Attributes:
        indices: int64 [K], ordinals of the kept tokens, ascending.
        relevance: float32 [N_v], a distribution over the tokens; None where nothing was ranked.
    """

    indices: NDArray[np.int64]
    relevance: NDArray[np.float32] | None


class KeptPrompt:
    """A prompt with fewer visual tokens, ready for the language model.

    Attributes:
        prompt: The whole prompt.
        length: Tokens that are left, T'.
        embeds: [1, T', H], in the prompt's order; its memory may hold more rows.
        position_ids: int64 [A, 1, T'], the original rotary positions.
        scores: float32 [N_v], what the ranking used; None where nothing was ranked.
    """

    def __init__(
        self,
        prompt: Prompt,
        length: int,
        embeds: Tensor,
        position_ids: Any,
        indices: NDArray[np.int64] | Readable,
        relevance: NDArray[np.float32] | Readable | None = None,
        scores: Readable | None = None,
        advice: str = DAMAGED,
    ) -> None:
        """Put together what a backend has enqueued; nothing is waited for.

        `advice` says what to do where the relevance is not finite.
        """
        self.prompt, self.length = prompt, length
        self.embeds, self.position_ids, self.scores = embeds, position_ids, scores
        self._indices, self._relevance, self._advice = indices, relevance, advice
        self._kept: KeptTokens | None = None

    @property
    def next_position(self) -> int:
        """The rotary position of the first generated token, on every axis: that after the whole prompt."""
        return self.prompt.next_position

    def selection(self) -> KeptTokens:
        """What was kept and why, read from the device once.

        Raises:
            BackendError: The relevance is not finite, so that nothing was ranked.
        """
        if self._kept is None:
            relevance = None if self._relevance is None else on_host(self._relevance)
            self._check_finite(relevance, None if self.scores is None else on_host(self.scores))
            self._kept = KeptTokens(on_host(self._indices), relevance)
        return self._kept

    def discard(self) -> None:
        """Zero the embeddings' memory where a device has it: later prompts may be padded with its rows."""
        with contextlib.suppress(BackendError):
            clear(self.embeds)

    @property
    def kept_index(self) -> NDArray[np.int64]:
        """Where in the whole prompt the tokens that are left stand, int64 [T'], ascending."""
        return self.prompt.kept_index(self.selection().indices)

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """The ids of the tokens that are left, int64 [T'], visual placeholders among them."""
        return self.prompt.token_ids[self.kept_index]

    @property
    def visual(self) -> NDArray[np.bool_]:
        """Which of the tokens that are left are visual, bool [T']."""
        return np.isin(self.kept_index, self.prompt.visual_index)

    def _check_finite(self, *ranked: NDArray[np.float32] | None) -> None:
        """BackendError where the ranking used, or gave, a number that is not finite."""
        try:
            for values in ranked:
                if values is not None:
                    check_finite(values, "the compressor's relevance scores", self._advice)
        except BackendError:
            self.discard()
            raise
