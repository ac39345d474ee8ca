"""Prompts of thousands of visual tokens, as a compressor graph takes them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

GRIDS = {6000: (16, 15, 25), 8667: (1, 81, 107)}
"""Visual tokens as (steps, rows, columns): a video of 32 frames, and a picture."""
SHORT = (1, 4, 5)
TEXT, INSTRUCTION = 24, 12


def long_prompt(visual: int, keep: int, hidden: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Inputs of a compressor graph of standard operators: a picture or video, and an instruction behind it.

    Args:
        visual: 6000 or 8667 visual tokens.
        keep: How many are kept.
        hidden: The width of an embedding.
        seed: Of the embeddings, of the size that nano's have.
    """
    return _prompt(GRIDS[visual], keep, hidden, seed)


def short_prompt(hidden: int) -> dict[str, NDArray[Any]]:
    """The same with 20 visual tokens, of which five are kept."""
    return _prompt(SHORT, 5, hidden, 0)


def _prompt(
    shape: tuple[int, int, int], keep: int, hidden: int, seed: int
) -> dict[str, NDArray[Any]]:
    """Inputs of a grid of visual tokens between 4 and 20 tokens of text."""
    random, before = np.random.default_rng(seed), 4
    visual = int(np.prod(shape))
    total = visual + TEXT
    places = np.arange(total)
    visual_index = places[before : before + visual]
    grid = np.indices(shape).reshape(3, -1) + before
    behind = grid.max() + 1 + np.arange(TEXT - before)
    positions = [np.tile(np.arange(before), (3, 1)), grid, np.tile(behind, (3, 1))]
    return {
        "text_embeds": random.standard_normal((TEXT, hidden), np.float32),
        "visual_embeds": random.standard_normal((visual, hidden), np.float32),
        "text_index": np.setdiff1d(places, visual_index),
        "visual_index": visual_index,
        "instruction_rows": np.arange(TEXT - INSTRUCTION - 2, TEXT - 2),
        "position_ids": np.concatenate(positions, axis=1),
        "keep": np.array([keep]),
    }
