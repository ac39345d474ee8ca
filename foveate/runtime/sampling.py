"""Choosing the next token from logits."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.errors import SamplingError
from foveate.runtime import logits_processors as rules
from foveate.runtime.checks import Check, number, optional, whole
from foveate.runtime.logits_processors import Biases

Filter = Callable[[NDArray[np.float64]], NDArray[np.bool_]]
"""Of logits [K], which of them may be sampled."""

SAMPLING: Mapping[str, Check] = {
    "temperature": number(
        SamplingError, "0 (greedy) or a number above it", lambda value: value >= 0
    ),
    "top_p": number(SamplingError, "a probability in (0, 1]", lambda value: 0 < value <= 1),
    "top_k": optional(whole(SamplingError, 0, hint=", where 0 is all tokens")),
    "seed": optional(whole(SamplingError, 0)),
    "repetition_penalty": number(
        SamplingError, "a number from 0.001 to 1000", lambda value: 1e-3 <= value <= 1e3
    ),
}
"""What each field of `Sampling` may be."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; fields have the names and the meaning that they have in transformers.

    Attributes:
        temperature: 0 is greedy; above it, logits are divided by it before sampling.
        top_p: Sample from the smallest set of tokens with at least this probability, in (0, 1].
        top_k: Sample from this many best tokens; 0 or None for all.
        seed: Makes sampling repeatable; None for a new seed every time.
        repetition_penalty: Above 1, tokens seen in the prompt or the answer become less likely.
        min_p: Sample only from tokens with this share of the best one's probability; 0 for all.
        typical_p: Sample from the most typical tokens with this probability; 1 for all.
        epsilon_cutoff: Sample only from tokens of at least this probability; 0 for all.
        eta_cutoff: As `epsilon_cutoff`, lower where the model is uncertain; 0 for all.
        top_h: Sample from the best tokens with this share of the entropy; None for all.
        no_repeat_ngram_size: No sequence of so many tokens comes twice; 0 for any.
        sequence_bias: What is added to the logit of a sequence's last token after the others.
        bad_words: Sequences of tokens that never come.
        min_new_tokens: The fewest tokens before one of `eos`.
        suppressed: Tokens that never come.
        suppressed_first: Tokens that do not come first.
        forced_last: Tokens of which one comes at place `last`, in place of what would.
        last: The answer's longest length in tokens, where `forced_last` names any.
        eos_decay: From how many new tokens on `eos` becomes likelier, and the base of its growth.
        eos: The checkpoint's own stop tokens, for the rules that are about them.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    top_h: float | None = None
    no_repeat_ngram_size: int = 0
    sequence_bias: Biases = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_new_tokens: int = 0
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    forced_last: tuple[int, ...] = ()
    last: int | None = None
    eos_decay: tuple[int, float] | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled with."""
        for name, check in SAMPLING.items():
            check(name, getattr(self, name))

    @property
    def is_argmax(self) -> bool:
        """Whether of logits that no rule changes the highest is taken, of several the first."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def has_rules(self) -> bool:
        """Whether logits are changed by more than the repetition penalty before a token is chosen."""
        return bool(
            self.no_repeat_ngram_size
            or self.sequence_bias
            or self.bad_words
            or self.min_new_tokens
            or self.suppressed
            or self.suppressed_first
            or self.forced_last
            or self.eos_decay
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
        self.prompt, self.said = prompt_ids, list[int]()
        self.banned: Biases = tuple(
            (word, -math.inf)
            for word in options.bad_words
            if word not in {(n,) for n in options.eos}
        )

    def choose(self, logits: NextToken) -> int:
        """The next token, from the logits after the last one."""
        token = self.pick(logits)
        self.seen.add(token)
        self.said.append(token)
        return token

    def pick(self, logits: NextToken) -> int:
        """The next token; logits are read only where the best token alone does not decide it."""
        options = self.options
        penalty = options.repetition_penalty
        if options.is_argmax and penalty >= 1 and not options.has_rules:
            best = logits.argmax()
            # A penalty pushes down only what was seen.
            if penalty == 1 or best not in self.seen:
                return best
        values = self.processed(logits.logits())
        if options.is_argmax:
            return int(values.argmax())
        return self.draw(values)

    def processed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 [V] after all rules, in the order in which transformers applies them."""
        options, count = self.options, len(self.said)
        tokens = self.prompt
        if options.no_repeat_ngram_size or options.sequence_bias or self.banned:
            tokens = np.concatenate([self.prompt, np.array(self.said, np.int64)])
        if options.sequence_bias:
            logits = rules.bias_sequences(logits, tokens, options.sequence_bias)
        if options.repetition_penalty != 1:
            logits = rules.penalise_seen(logits, self.seen, options.repetition_penalty)
        if options.no_repeat_ngram_size:
            logits = rules.ban_repeated_ngrams(logits, tokens, options.no_repeat_ngram_size)
        if self.banned:
            logits = rules.bias_sequences(logits, tokens, self.banned)
        if count < options.min_new_tokens:
            logits = rules.ban(logits, options.eos)
        if options.forced_last and count + 1 == options.last:
            logits = rules.force(logits, options.forced_last)
        if options.eos_decay is not None and count > options.eos_decay[0]:
            start, factor = options.eos_decay
            logits = rules.favour(logits, options.eos, factor, count - start)
        if options.suppressed:
            logits = rules.ban(logits, options.suppressed)
        if options.suppressed_first and count == 0:
            logits = rules.ban(logits, options.suppressed_first)
        return logits

    def draw(self, logits: NDArray[np.float32]) -> int:
        """Sample one of the tokens that no filter drops, the filters in transformers' order."""
        tokens, weights = self.candidates(logits)
        return int(self.generator.choice(tokens, p=rules.softmax(weights)))

    def candidates(
        self, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The tokens that may come, int64 [K], and their logits divided by the temperature.

        Raises:
            SamplingError: None may.
        """
        options = self.options
        tokens: NDArray[np.int64] = np.flatnonzero(logits != -np.inf).astype(np.int64)
        if not len(tokens):
            raise SamplingError(
                "the checkpoint's rules for its answers leave no token to go on with"
            )
        # The best becomes 0, so that a temperature near 0 makes no infinity of it.
        above = logits[tokens].astype(np.float64) - float(logits[tokens].max())
        with np.errstate(over="ignore"):
            weights = above / options.temperature
        for keep in self.filters():
            kept = keep(weights)
            tokens, weights = tokens[kept], weights[kept]
        return tokens, weights

    def filters(self) -> Iterator[Filter]:
        """What drops tokens before one is sampled, in transformers' order."""
        options = self.options
        if options.top_h is not None:
            yield partial(rules.keep_top_h, top_h=options.top_h)
        if options.top_k:
            yield partial(rules.keep_top_k, top_k=options.top_k)
        if options.top_p < 1:
            yield partial(rules.keep_top_p, top_p=options.top_p)
        if options.min_p > 0:
            yield partial(rules.keep_min_p, min_p=options.min_p)
        if options.typical_p < 1:
            yield partial(rules.keep_typical, mass=options.typical_p)
        if 0 < options.epsilon_cutoff < 1:
            yield partial(rules.keep_epsilon, epsilon=options.epsilon_cutoff)
        if 0 < options.eta_cutoff < 1:
            yield partial(rules.keep_eta, epsilon=options.eta_cutoff)
