"""A sequence's keys and values, kept for a later prompt that begins as it did."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.families.base import VisualInput
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import KVCache, NextLogits
from foveate.runtime.tensors import Tensor


class ResumableCache(KVCache, Protocol):
    """A `KVCache` of one sequence that can begin with keys and values computed before."""

    def states(self) -> Mapping[str, Tensor]:
        """Keys and values by name, [1, kv_heads, L or more, head_dim], of the L tokens taken in."""
        ...

    def resume(self, prompt: KeptPrompt, states: Mapping[str, Tensor], count: int) -> NextLogits:
        """Take in a prompt whose first `count` tokens are those of `states`, fewer than all."""
        ...


class PrefixCache:
    """Keys and values of the last request that was given it; the next one is spared what it shares.

    A token is shared where it, its position and all before it are the same, and a visual one only with
    the same `EncodedMedia`. One request at a time may use it. It is used by language models whose
    `Capabilities.prefix_reuse` says so, and changes no answer but by rounding.

    Attributes:
        reused: How many tokens of the last prompt were there already.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.reused = 0
        self._visual: VisualInput | None = None
        self._tokens: NDArray[np.int64] = np.empty((0, 0), np.int64)
        self._states: Mapping[str, Tensor] = {}

    @property
    def tokens(self) -> int:
        """How many tokens it holds."""
        return len(self._tokens)

    def clear(self) -> None:
        """Let go of everything."""
        self.__init__()  # type: ignore[misc]

    def about(self, visual: VisualInput) -> None:
        """Forget the visual tokens, and what comes after them, of other pictures than these."""
        if visual is not self._visual:
            shown = np.flatnonzero(self._tokens[:, :1] < 0)
            self._tokens = self._tokens[: shown[0] if len(shown) else None]
            self._visual = visual

    def over(self, cache: ResumableCache) -> "PrefixedCache":
        """A cache that begins with what is shared and is kept when it is given back."""
        return PrefixedCache(self, cache)

    def shared(self, tokens: NDArray[np.int64]) -> int:
        """How many of a prompt's tokens, all but the last at most, it has at the beginning."""
        most = min(len(tokens) - 1, self.tokens)
        if not self.tokens or tokens.shape[1] != self._tokens.shape[1]:
            return 0
        differing = np.flatnonzero((tokens[:most] != self._tokens[:most]).any(1))
        return int(differing[0]) if len(differing) else most

    def replace(self, tokens: NDArray[np.int64], states: Mapping[str, Tensor]) -> None:
        """Hold another sequence."""
        self._tokens, self._states = tokens, states

    def states(self) -> Mapping[str, Tensor]:
        """Its keys and values by name, of its tokens or more."""
        return self._states


class PrefixedCache:
    """The `KVCache` of one sequence that takes over what a `PrefixCache` holds, and leaves itself to it."""

    def __init__(self, prefix: PrefixCache, cache: ResumableCache) -> None:
        """Put a prefix over a cache with nothing in it."""
        self._prefix, self._cache = prefix, cache
        self._tokens: list[NDArray[np.int64]] = []

    def prefill(self, row: int, prompt: KeptPrompt) -> NextLogits:
        """Take in what the prefix does not have of a prompt; see `KVCache.prefill`."""
        tokens = prompt_tokens(prompt)
        prefix = self._prefix
        prefix.reused = prefix.shared(tokens)
        if prefix.reused:
            logits = self._cache.resume(prompt, prefix.states(), prefix.reused)
        else:
            logits = self._cache.prefill(row, prompt)
        self._tokens = [tokens]
        return logits

    def decode(self, tokens: Mapping[int, tuple[int, int]]) -> dict[int, NextLogits]:
        """Take in a token; see `KVCache.decode`."""
        found = self._cache.decode(tokens)
        token, position = tokens[0]
        self._tokens.append(np.array([[token, *[position] * (self._tokens[0].shape[1] - 1)]]))
        return found

    def nbytes(self, row: int) -> int:
        """Bytes of keys and values that it holds now."""
        return self._cache.nbytes(row)

    def release(self, row: int) -> None:
        """Leave the sequence to the prefix, and give the cache back."""
        if self._tokens:
            self._prefix.replace(np.concatenate(self._tokens), self._cache.states())
            self._tokens = []
        self._cache.release(row)


def prompt_tokens(prompt: KeptPrompt) -> NDArray[np.int64]:
    """What each token of a kept prompt is and where, int64 [T', 1 + A]: its id, and its positions.

    A visual token counts by its ordinal, -1 - ordinal in place of the id.
    """
    ids = prompt.token_ids.copy()
    ids[prompt.visual] = -1 - prompt.selection().indices
    places = prompt.prompt.position_ids[:, prompt.kept_index]
    return np.concatenate([ids[None], places]).T
