"""Prompts of random embeddings for decoders that are driven by hand, and what such a decoder is told."""

import numpy as np
from numpy.typing import NDArray

from foveate.families.base import Prompt
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import Generation
from foveate.runtime.sampling import Sampling


def kept_prompt(
    count: int, width: int, seed: int = 0, places: NDArray[np.int64] | None = None, after: int = 0
) -> KeptPrompt:
    """A prompt of `count` text tokens whose embeddings are random.

    Args:
        count: Its tokens.
        width: Of the embeddings.
        seed: Of the embeddings.
        places: Positions [3, 1, count]; None for ascending ones.
        after: The position of the first generated token.
    """
    embeds = np.random.default_rng(seed).standard_normal((1, count, width)).astype(np.float32)
    if places is None:
        places = np.tile(np.arange(count), (3, 1, 1))
    nothing = np.empty(0, np.int64)
    prompt = Prompt(np.zeros(count, np.int64), nothing, nothing, places[:, 0], after)
    return KeptPrompt(prompt, count, embeds, places, nothing)


def generation(prompt_tokens: int, most_tokens: int, next_position: int = 0) -> Generation:
    """A greedy answer whose sequence holds at most `most_tokens`."""
    return Generation(
        prompt_tokens, next_position, most_tokens - prompt_tokens, frozenset(), Sampling()
    )


def room_for(most_tokens: int) -> list[Generation]:
    """What a decoder is told of one sequence of at most so many tokens."""
    return [generation(1, most_tokens)]


def row(token: int, position: int) -> dict[int, tuple[int, int]]:
    """A decode step of one sequence."""
    return {0: (token, position)}
