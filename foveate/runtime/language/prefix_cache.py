"""A sequence's keys and values, kept for a later prompt that begins as it did."""

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Held:
    """A sequence that was computed.

    Attributes:
        owner: The language model that did.
        visual: The pictures and videos whose visual tokens are in it.
        tokens: Its tokens, int64 [L, 1 + A]; see `prompt_tokens`.
        states: Their keys and values by name, [1, kv_heads, L or more, head_dim].
    """

    owner: object
    visual: VisualInput
    tokens: NDArray[np.int64]
    states: Mapping[str, Tensor]

    def shared(self, owner: object, visual: VisualInput, tokens: NDArray[np.int64]) -> int:
        """How many of a prompt's tokens, all but the last at most, are at its beginning as well."""
        if owner is not self.owner or tokens.shape[1] != self.tokens.shape[1]:
            return 0
        most = min(len(tokens) - 1, len(self.tokens))
        differs = (tokens[:most] != self.tokens[:most]).any(1)
        if visual is not self.visual:
            differs |= tokens[:most, 0] < 0
        first = np.flatnonzero(differs)
        return int(first[0]) if len(first) else most


class PrefixCache:
    """Keys and values of the last request that was given it; the next one is spared what it shares.

    A token is shared where it, its position and all before it are the same, and a visual one only with
    the same `EncodedMedia`. It is used by language models whose `Capabilities.prefix_reuse` says so, and
    changes no answer but by rounding.

    Attributes:
        reused: How many tokens of the last prompt were there already.
        held: The sequence; None before the first.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.reused = 0
        self.held: Held | None = None

    @property
    def tokens(self) -> int:
        """How many tokens it holds."""
        return 0 if self.held is None else len(self.held.tokens)

    def clear(self) -> None:
        """Let go of everything."""
        self.reused, self.held = 0, None


@dataclass(frozen=True, slots=True)
class Prefix:
    """What one request's prompt may begin with, and where its keys and values go.

    Attributes:
        cache: What holds them.
        owner: The language model that is asked.
        visual: The request's pictures and videos.
    """

    cache: PrefixCache
    owner: object
    visual: VisualInput


class PrefixedCache:
    """The `KVCache` of one sequence that takes over what a prefix holds, and leaves itself to it."""

    def __init__(self, prefix: Prefix, cache: ResumableCache) -> None:
        """Put a prefix over a cache with nothing in it."""
        self._prefix, self._cache = prefix, cache
        self._tokens: list[NDArray[np.int64]] = []

    def prefill(self, row: int, prompt: KeptPrompt) -> NextLogits:
        """Take in what the prefix does not have of a prompt; see `KVCache.prefill`."""
        tokens, prefix = prompt_tokens(prompt), self._prefix
        held, shared = prefix.cache.held, 0
        if held is not None:
            shared = held.shared(prefix.owner, prefix.visual, tokens)
        if held is not None and shared:
            logits = self._cache.resume(prompt, held.states, shared)
        else:
            logits = self._cache.prefill(row, prompt)
        prefix.cache.reused, self._tokens = shared, [tokens]
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
            prefix, tokens = self._prefix, np.concatenate(self._tokens)
            self._tokens = []
            prefix.cache.held = Held(prefix.owner, prefix.visual, tokens, self._cache.states())
        self._cache.release(row)

    def discard(self) -> None:
        """End the sequence, of which nothing may be used again."""
        self._tokens = []
        self._prefix.cache.clear()
        self._cache.discard()


def prompt_tokens(prompt: KeptPrompt) -> NDArray[np.int64]:
    """What each token of a kept prompt is and where, int64 [T', 1 + A]: its id, and its positions.

    A visual token counts by its ordinal, -1 - ordinal in place of the id.
    """
    ids = prompt.token_ids.copy()
    ids[prompt.visual] = -1 - prompt.selection().indices
    places = prompt.prompt.position_ids[:, prompt.kept_index]
    tokens: NDArray[np.int64] = np.concatenate([ids[None], places]).T
    return tokens
