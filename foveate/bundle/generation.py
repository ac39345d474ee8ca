"""The part of the manifest that says how answers are generated where a request does not."""

import math
from collections.abc import Iterator
from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Ratio = Annotated[float, msgspec.Meta(gt=0, le=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Factor = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Tokens = Annotated[list[Natural], msgspec.Meta(min_length=1)]


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When and how the checkpoint wants its text generated.

    Fields have the names and the meaning that they have in transformers' generation_config.json, but
    for `eos`, the tokens that end an answer. `max_new_tokens` or `max_length` is null, not both;
    `max_length` and `min_length` count the whole prompt too. `top_k` 0 is all tokens.
    """

    eos: Tokens
    max_new_tokens: Count | None
    max_length: Count | None
    min_new_tokens: Natural
    min_length: Natural
    do_sample: bool
    temperature: Factor
    top_k: Natural
    top_p: Ratio
    min_p: Share
    typical_p: Ratio
    epsilon_cutoff: Share
    eta_cutoff: Share
    top_h: Ratio | None
    repetition_penalty: Factor
    no_repeat_ngram_size: Natural
    sequence_bias: list[tuple[Tokens, float]]
    bad_words_ids: list[Tokens]
    suppress_tokens: list[Natural]
    begin_suppress_tokens: list[Natural]
    forced_eos_token_id: list[Natural]
    exponential_decay_length_penalty: tuple[Natural, Factor] | None


def generation_problems(generation: Generation, vocabulary: int) -> Iterator[str]:
    """What the types alone do not refuse, as sentences; `vocabulary` is how many tokens there are."""
    if (generation.max_new_tokens is None) == (generation.max_length is None):
        yield "'generation' has not one of 'max_new_tokens' and 'max_length'"
    if not all(math.isfinite(bias) for _, bias in generation.sequence_bias):
        yield "'generation.sequence_bias' holds a number that is not finite"
    named = {
        "eos": generation.eos,
        "sequence_bias": [one for tokens, _ in generation.sequence_bias for one in tokens],
        "bad_words_ids": [one for tokens in generation.bad_words_ids for one in tokens],
        "suppress_tokens": generation.suppress_tokens,
        "begin_suppress_tokens": generation.begin_suppress_tokens,
        "forced_eos_token_id": generation.forced_eos_token_id,
    }
    for name, tokens in named.items():
        if any(token >= vocabulary for token in tokens):
            yield (
                f"'generation.{name}' names the token {max(tokens)}, and the vocabulary has {vocabulary}"
            )
