"""How a request is answered where it does not say: by the bundle's own generation settings."""

from typing import Any

from foveate.bundle.generation import Generation
from foveate.errors import LimitError
from foveate.runtime.request import Request
from foveate.runtime.sampling import Sampling

FILTERS = ("top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
"""Settings that count only where tokens are sampled."""


def choose_sampling(asked: Request, usual: Generation, prompt_tokens: int) -> Sampling:
    """How the tokens of an answer are chosen.

    Args:
        asked: The request.
        usual: The bundle's own settings.
        prompt_tokens: Tokens of the whole prompt, before any is dropped.

    Raises:
        SamplingError: A field out of range.
    """
    temperature = asked.temperature
    if temperature is None:
        temperature = usual.temperature if usual.do_sample else 0.0
    filters: dict[str, Any] = (
        {} if temperature == 0 else {name: getattr(usual, name) for name in FILTERS}
    )
    filters |= {
        name: getattr(asked, name)
        for name in ("top_p", "top_k")
        if getattr(asked, name) is not None
    }
    penalty = asked.repetition_penalty
    least = max(usual.min_new_tokens, usual.min_length - prompt_tokens, 0)
    decay = usual.exponential_decay_length_penalty
    return Sampling(
        temperature=temperature,
        **filters,
        seed=asked.seed,
        repetition_penalty=usual.repetition_penalty if penalty is None else penalty,
        no_repeat_ngram_size=usual.no_repeat_ngram_size,
        sequence_bias=tuple((tuple(tokens), bias) for tokens, bias in usual.sequence_bias),
        bad_words=tuple(map(tuple, usual.bad_words_ids)),
        min_new_tokens=least,
        suppressed=tuple(usual.suppress_tokens),
        suppressed_first=tuple(usual.begin_suppress_tokens),
        forced_last=tuple(usual.forced_eos_token_id),
        eos_decay=decay,
        eos=tuple(usual.eos) if least or decay or usual.bad_words_ids else (),
    )


def usual_length(usual: Generation, prompt_tokens: int) -> int:
    """The most tokens of an answer where the request does not say.

    Args:
        usual: The bundle's own settings.
        prompt_tokens: Tokens of the whole prompt, before any is dropped.

    Raises:
        LimitError: The prompt alone is as long as the checkpoint's `max_length`.
    """
    if usual.max_new_tokens is not None:
        return usual.max_new_tokens
    assert usual.max_length is not None
    if prompt_tokens >= usual.max_length:
        raise LimitError(
            f"the prompt has {prompt_tokens} tokens before any is dropped, and the checkpoint's max_length "
            f"of {usual.max_length} counts prompt and answer; give max_new_tokens, which goes before it"
        )
    return usual.max_length - prompt_tokens
