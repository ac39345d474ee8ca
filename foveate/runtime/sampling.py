"""Choosing the next token from logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.errors import SamplingError
from foveate.runtime.checks import Check, number, optional, whole

SAMPLING: Mapping[str, Check] = {
    "temperature": number(
        SamplingError, "0 (greedy) or a number above it", lambda value: value >= 0
    ),
    "top_p": number(SamplingError, "a probability in (0, 1]", lambda value: 0 < value <= 1),
    "top_k": optional(whole(SamplingError, 1)),
    "seed": optional(whole(SamplingError, 0)),
    "repetition_penalty": number(
        SamplingError, "a number from 0.001 to 1000", lambda value: 1e-3 <= value <= 1e3
    ),
}
"""What each field of `Sampling` may be."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 is greedy; above it, logits are divided by it before sampling.
        top_p: Sample from the smallest set of tokens with at least this probability, in (0, 1].
        top_k: Sample from this many best tokens; None for all.
        seed: Makes sampling repeatable; None for a new seed every time.
        repetition_penalty: Above 1, tokens seen in the prompt or the answer become less likely.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled with."""
        for name, check in SAMPLING.items():
            check(name, getattr(self, name))


class NextToken(Protocol):
    """The logits of a sequence's next token."""

    def logits(self) -> NDArray[np.float32]:
        """Every token's logit, float32 [V]."""
        ...

    def argmax(self) -> int:
        """The token with the highest logit, of several the first."""
        ...


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, options: Sampling, prompt_ids: NDArray[np.int64]) -> None:
        """Start an answer to the prompt `prompt_ids` int64 [T]."""
        self.options = options
        self.seen = set(prompt_ids.tolist())
        self.generator = np.random.default_rng(options.seed)

    def choose(self, logits: NextToken) -> int:
        """The next token, from the logits after the last one."""
        token = self.pick(logits)
        self.seen.add(token)
        return token

    def pick(self, logits: NextToken) -> int:
        """The next token; logits are read only where the best token alone does not decide it."""
        options = self.options
        penalty = options.repetition_penalty
        if options.temperature == 0 and penalty >= 1:
            best = logits.argmax()
            # A penalty pushes down only what was seen.
            if penalty == 1 or best not in self.seen:
                return best
        values = logits.logits()
        if penalty != 1:
            values = penalised(values, self.seen, penalty)
        if options.temperature == 0:
            return int(values.argmax())
        # The best first becomes 0, so that a temperature near 0 makes no infinity of it.
        above = values.astype(np.float64) - values.max()
        with np.errstate(over="ignore"):
            return self.draw(above / options.temperature)

    def draw(self, logits: NDArray[np.float64]) -> int:
        """Sample among the top-k, then top-p tokens."""
        order = np.argsort(-logits, kind="stable")[: self.options.top_k]
        weights = np.exp(logits[order] - logits[order[0]])
        weights /= weights.sum()
        if self.options.top_p < 1:
            before = np.cumsum(weights) - weights
            weights = np.where(before < self.options.top_p, weights, 0)
            weights /= weights.sum()
        return int(self.generator.choice(order, p=weights))


def penalised(logits: NDArray[np.float32], seen: set[int], penalty: float) -> NDArray[np.float32]:
    """Logits with those of seen tokens pushed down (CTRL, Keskar et al. 2019, section 4.1)."""
    logits = logits.copy()
    index = np.fromiter(seen, dtype=np.int64)
    index = index[index < len(logits)]
    chosen = logits[index]
    logits[index] = np.where(chosen > 0, chosen / penalty, chosen * penalty)
    return logits
