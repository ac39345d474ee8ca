"""Choosing the next token from logits."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.errors import SamplingError


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
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise SamplingError(f"temperature is {self.temperature}; give 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise SamplingError(f"top_p is {self.top_p}; give a probability in (0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise SamplingError(f"top_k is {self.top_k}; give a count of at least 1, or None")
        if self.seed is not None and self.seed < 0:
            raise SamplingError(f"seed is {self.seed}; give 0 or more, or None")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise SamplingError(
                f"repetition_penalty is {self.repetition_penalty}; give more than 0"
            )


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
        return self.draw(values.astype(np.float64) / options.temperature)

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
