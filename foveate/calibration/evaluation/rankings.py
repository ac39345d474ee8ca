"""Ways to rank the visual tokens of a checkpoint's question, by the names that a command line gives them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from foveate.bundle.words import UNTRAINED
from foveate.calibration.relevance.propagation import Mode
from foveate.calibration.torch_model import PreparedQuestion, TorchModel
from foveate.errors import CheckpointError
from foveate.modeling.f_theta import FTheta
from foveate.modeling.ranker import Ranker

MODES: dict[str, Mode] = {
    "relevance": "grad",
    "relevance-clamp": "grad-clamp",
    "relevance-mean": "mean",
}
DEFAULT = "attention"


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question, and what rankings take of it, each computed once and only if it is wanted.

    Attributes:
        model: The checkpoint.
        question: With all visual tokens.
        most: The longest answer, in tokens.
    """

    model: TorchModel
    question: PreparedQuestion
    most: int

    @cached_property
    def answer(self) -> list[int]:
        """The model's own greedy answer with all visual tokens."""
        return self.model.answer(self.question, most=self.most)

    @cached_property
    def attention(self) -> Tensor:
        """A⁰: float32 [heads, N_u, N_v]."""
        return self.model.attention(self.question)

    def relevance(self, mode: Mode) -> Tensor | None:
        """R_v (Eq. 1): float32 [N_v]; None where the answer is empty."""
        return self.model.relevance(self.question, self.answer, mode) if self.answer else None


def ranked(ranker: Ranker, attention: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and relevance, float32 [N_v] each, as `Ranker` gives them where attention is."""
    with torch.no_grad():
        scores, relevance = ranker.to(attention.device)(attention)
    return scores, relevance


Scores = Callable[[AnsweredQuestion], Tensor | None]
"""Gives scores [N_v], high for tokens that matter, or None where there are none."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """One way to say which visual tokens matter.

    Attributes:
        name: Its own name, or its file as the command line has it.
        scores: How tokens are scored.
        ranker: What predicts relevance before the answer; None for relevance itself.
        file: The weights, for a trained f_θ.
        facts: What that file says of itself.
    """

    name: str
    scores: Scores
    ranker: Ranker | None = None
    file: Path | None = None
    facts: dict[str, str] | None = None


def _predicting(
    name: str, ranker: Ranker, file: Path | None = None, facts: dict[str, str] | None = None
) -> Ranking:
    """A ranking by what is predicted before the answer."""
    return Ranking(
        name, lambda question: ranked(ranker, question.attention)[0], ranker, file, facts
    )


RANKINGS: dict[str, Ranking] = {
    ranking.name: ranking
    for ranking in (
        *(_predicting(name, Ranker(words=words)) for name, words in UNTRAINED.items()),
        *(
            Ranking(name, partial(AnsweredQuestion.relevance, mode=mode))
            for name, mode in MODES.items()
        ),
    )
}


def find_rankings(wanted: Sequence[str]) -> list[Ranking]:
    """Find the rankings of these names, each once; other names are files of a trained f_θ.

    Args:
        wanted: Names with commas between, in any number of texts; without any, `DEFAULT`.

    Raises:
        CheckpointError: Neither a name nor the weights of an f_θ.
    """
    names = [name.strip() for text in wanted or [DEFAULT] for name in text.split(",")]
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
    return _predicting(name, Ranker(network), path, facts)
