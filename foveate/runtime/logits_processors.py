"""Rules that change logits before a token is chosen, in transformers' order and with its arithmetic."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Ids = Sequence[int]
Biases = tuple[tuple[tuple[int, ...], float], ...]
"""Sequences of tokens, and what is added to the last one's logit where the others stand before it."""

TOP_H_TOKENS = 100
"""How many of the best tokens `keep_top_h` looks at."""


def bias_sequences(logits: Logits, tokens: NDArray[np.int64], biases: Biases) -> Logits:
    """Add each sequence's bias to the logit of its last token, where `tokens` end with the others."""
    added = np.zeros_like(logits)
    for (*before, last), bias in biases:
        if len(before) <= len(tokens) and tokens[len(tokens) - len(before) :].tolist() == before:
            added[last] += np.float32(bias)
    return logits + added


def penalise_seen(logits: Logits, seen: Iterable[int], penalty: float) -> Logits:
    """Push the logits of seen tokens down (CTRL, Keskar et al. 2019, section 4.1)."""
    logits = logits.copy()
    index = np.fromiter(seen, dtype=np.int64)
    index = index[index < len(logits)]
    chosen = logits[index]
    logits[index] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
    return logits


def ban_repeated_ngrams(logits: Logits, tokens: NDArray[np.int64], size: int) -> Logits:
    """Ban what would make the last `size` tokens a sequence that `tokens` already hold."""
    if len(tokens) < size:
        return logits
    windows = np.lib.stride_tricks.sliding_window_view(tokens, size)
    ending = tokens[len(tokens) - (size - 1) :]
    return ban(logits, windows[(windows[:, :-1] == ending).all(axis=1), -1])


def ban(logits: Logits, tokens: Ids | NDArray[np.int64]) -> Logits:
    """Give tokens no chance."""
    index = np.asarray(tokens, np.int64)
    logits = logits.copy()
    logits[index[index < len(logits)]] = -np.inf
    return logits


def force(logits: Logits, tokens: Ids) -> Logits:
    """Give no token a chance but these, all the same."""
    forced = np.full_like(logits, -np.inf)
    forced[list(tokens)] = 0
    return forced


def favour(logits: Logits, tokens: Ids, factor: float, steps: int) -> Logits:
    """Raise tokens' logits by |logit| · (factor^steps - 1)."""
    index = list(tokens)
    raised = np.abs(logits[index]) * np.float32(factor**steps - 1)
    logits = logits.copy()
    logits[index] += np.where(np.isfinite(logits[index]), raised, 0)
    return logits


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of logits [K], of which at least one is finite."""
    weights = np.exp(logits - logits.max())
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def entropy(probabilities: NDArray[np.float64]) -> float:
    """The entropy of probabilities [K], in nats."""
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())


def keep_top_h(logits: NDArray[np.float64], top_h: float) -> NDArray[np.bool_]:
    """bool [K]: the best tokens whose entropy together is at most `top_h` of that of all of them."""
    best = np.argsort(-logits, kind="stable")[:TOP_H_TOKENS]
    chances = softmax(logits[best])
    terms = np.zeros_like(chances)
    positive = chances > 0
    terms[positive] = -chances[positive] * np.log(chances[positive])
    chosen = np.cumsum(terms) <= terms.sum() * top_h
    chosen[0] = True
    kept = np.zeros(len(logits), bool)
    kept[best[chosen]] = True
    return kept


def keep_top_k(logits: NDArray[np.float64], top_k: int) -> NDArray[np.bool_]:
    """bool [K]: the `top_k` best tokens, and what equals the last of them."""
    if top_k >= len(logits):
        return np.ones(len(logits), bool)
    kept: NDArray[np.bool_] = logits >= np.partition(logits, -top_k)[-top_k]
    return kept


def keep_top_p(logits: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """bool [K]: the fewest tokens that have the probability `top_p`, at least one."""
    ascending = np.argsort(logits, kind="stable")
    dropped = np.cumsum(softmax(logits[ascending])) <= 1 - top_p
    dropped[-1] = False
    kept = np.ones(len(logits), bool)
    kept[ascending[dropped]] = False
    return kept


def keep_min_p(logits: NDArray[np.float64], min_p: float) -> NDArray[np.bool_]:
    """bool [K]: tokens with at least `min_p` of the best one's probability."""
    chances = softmax(logits)
    kept: NDArray[np.bool_] = chances >= min_p * chances.max()
    return kept


def keep_typical(logits: NDArray[np.float64], mass: float) -> NDArray[np.bool_]:
    """bool [K]: tokens whose information is nearest to the entropy, up to the probability `mass`."""
    chances = softmax(logits)
    distance = np.full(len(logits), np.inf)
    positive = chances > 0
    distance[positive] = np.abs(-np.log(chances[positive]) - entropy(chances))
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(chances[order]) < mass).sum()), len(order) - 1)
    kept: NDArray[np.bool_] = distance <= distance[order[last]]
    kept[order[0]] = True
    return kept


def keep_epsilon(logits: NDArray[np.float64], epsilon: float) -> NDArray[np.bool_]:
    """bool [K]: tokens of at least the probability `epsilon`, and the best ones."""
    kept: NDArray[np.bool_] = (softmax(logits) >= epsilon) | (logits >= logits.max())
    return kept


def keep_eta(logits: NDArray[np.float64], epsilon: float) -> NDArray[np.bool_]:
    """bool [K]: as `keep_epsilon`, by a bound that falls as the entropy grows."""
    uncertain = float(np.sqrt(epsilon) * np.exp(-entropy(softmax(logits))))
    return keep_epsilon(logits, min(epsilon, uncertain))
