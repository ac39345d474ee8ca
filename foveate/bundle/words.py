"""The ways to weigh an instruction's tokens, and the compressors that need no training, by name."""

from pathlib import Path
from typing import Literal, get_args

Words = Literal["mean", "unusual", "learned"]
WORDS: tuple[Words, ...] = get_args(Words)
"""How the instruction's tokens are weighed: all alike, by how unusual their attention is, as trained."""
UNTRAINED: dict[str, Words] = {
    "attention": "mean",
    "attention:mean": "mean",
    "attention:unusual": "unusual",
}
"""The compressors that are no file, the language model's first-layer attention, and how they weigh words."""


def attention_words(compressor: str | Path) -> Words | None:
    """How a compressor weighs the instruction's tokens where it is attention itself; None where it is a file."""
    return UNTRAINED.get(str(compressor))
