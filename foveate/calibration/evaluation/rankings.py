"""Ways to rank the visual tokens of a question, by the names that a command line gives them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.calibration.relevance.propagation import Mode
from foveate.calibration.torch_model import PreparedQuestion, TorchModel
from foveate.errors import CheckpointError
from foveate.modeling.f_theta import FTheta

DOWNSAMPLE = "downsample"
MODES: dict[str, Mode] = {
    "relevance": "grad",
    "relevance-clamp": "grad-clamp",
    "relevance-mean": "mean",
}


@dataclass(frozen=True)
class Seen:
    """A question with its answer, and what rankings see in them, each computed once.

    Attributes:
        model: The checkpoint.
        id: The record's, which seeds chance.
        question: With all visual tokens.
        said: The model's own greedy answer, in tokens.
    """

    model: TorchModel
    id: str
    question: PreparedQuestion
    said: Sequence[int]

    @cached_property
    def attention(self) -> Tensor:
        """A⁰: float32 [heads, N_u, N_v]."""
        return self.model.attention(self.question)

    def relevance(self, mode: Mode) -> Tensor | None:
        """R_v: float32 [N_v]; None where nothing was said."""
        return self.model.relevance(self.question, self.said, mode) if self.said else None

    def chance(self) -> Tensor:
        """Random scores float64 [N_v] that only the record's id decides."""
        seed = int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:8], "big")
        return torch.from_numpy(np.random.default_rng(seed).random(self.question.visual.tokens))


@dataclass(frozen=True, slots=True)
class Ranking:
    """One way to say which visual tokens matter.

    Attributes:
        name: As it was asked for.
        scores: Scores [N_v] of a question's tokens, high for those that matter; None from it where
            there are none. Without it nothing is ranked: the pictures are made smaller.
        file: The weights, for a trained f_θ.
        facts: What that file says of itself.
    """

    name: str
    scores: Callable[[Seen], Tensor | None] | None
    file: Path | None = None
    facts: dict[str, str] | None = None


def _by_relevance(mode: Mode) -> Callable[[Seen], Tensor | None]:
    return lambda seen: seen.relevance(mode)


RANKINGS: dict[str, Ranking] = {
    ranking.name: ranking
    for ranking in (
        *(Ranking(name, _by_relevance(mode)) for name, mode in MODES.items()),
        Ranking("attention", lambda seen: seen.attention.mean((0, 1))),
        Ranking("random", Seen.chance),
        Ranking(DOWNSAMPLE, None),
    )
}


def find_rankings(wanted: Sequence[str]) -> list[Ranking]:
    """The rankings of these names, each once; other names are files of a trained f_θ.

    Args:
        wanted: Names with commas between, in any number of texts; without any, all of `RANKINGS`.

    Raises:
        CheckpointError: Neither a name nor the weights of an f_θ.
    """
    names = [name.strip() for text in wanted for name in text.split(",")] or list(RANKINGS)
    return [_find(name) for name in dict.fromkeys(names)]


def _find(name: str) -> Ranking:
    """One ranking, by its name or file."""
    if name in RANKINGS:
        return RANKINGS[name]
    path = Path(name)
    if not name or not path.exists():
        raise CheckpointError(
            f"there is no ranking {name!r}, and no file of that name; give the file of a trained "
            f"f_θ, or one of {', '.join(RANKINGS)}"
        )
    network, facts = FTheta.load(path)
    return Ranking(name, lambda seen: predicted(network, seen.attention), path, facts)


@torch.no_grad()
def predicted(network: FTheta, attention: Tensor) -> Tensor:
    """f_θ's logits [N_v] for first-layer attention [heads, N_u, N_v]."""
    logits: Tensor = network.to(attention.device)(network.pool(attention)[None])[0]
    return logits


def top(scores: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Ordinals of the `count` highest scores, ascending; of equal ones the first: int64 [count]."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def split(counts: Sequence[int], most: int) -> list[int]:
    """At most `most` tokens split over pictures of `counts` tokens, in proportion, one each at least.

    The shares add up to `most`, or to a token a picture where that is more.
    """
    spare = np.cumsum(np.array(counts) - 1)
    edges = spare * max(0, most - len(counts)) // max(1, int(spare[-1]))
    shares: list[int] = (1 + np.diff(edges, prepend=0)).tolist()
    return shares
