"""Logits before a token is chosen, against the logits processors of transformers."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.logits_process import LogitsProcessorList

from foveate.bundle.generation import Generation
from foveate.errors import LimitError, SamplingError
from foveate.modeling.generation_fields import generation_settings
from foveate.runtime.defaults import choose_sampling, usual_length
from foveate.runtime.language.base import NextLogits
from foveate.runtime.request import Request
from foveate.runtime.sampling import Sampler

VOCABULARY, EOS = 40, [3, 7]
PROMPT = [1, 5, 9, 5, 9, 2, 5]
LENGTH = 12

RULES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "repetition": {"repetition_penalty": 1.3},
    "reward": {"repetition_penalty": 0.8},
    "no token twice": {"no_repeat_ngram_size": 1},
    "no pair twice": {"no_repeat_ngram_size": 2},
    "no longer ngram twice than there is": {"no_repeat_ngram_size": 9},
    "bad words": {"bad_words_ids": [[4], [5, 6], [9, 5, 11], [3]]},
    "biases": {"sequence_bias": [[[5, 8], 9.0], [[12], -3.5], [[9, 5, 12], 4.0]]},
    "least new tokens": {"min_new_tokens": 4},
    "least length": {"min_length": 10},
    "both": {"min_new_tokens": 2, "min_length": 15},
    "forced end": {"forced_eos_token_id": 7},
    "forced ends": {"forced_eos_token_id": [9, 3]},
    "growing end": {"exponential_decay_length_penalty": [3, 1.5]},
    "never": {"suppress_tokens": [0, 1, 2, 30]},
    "not first": {"begin_suppress_tokens": [5, 6, 7, 8]},
    "all together": {
        "sequence_bias": [[[5], 6.0], [[9, 5], 3.0]], "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2, "bad_words_ids": [[5, 9], [7]], "min_new_tokens": 5,
        "forced_eos_token_id": 3, "exponential_decay_length_penalty": [2, 1.2],
        "suppress_tokens": [11], "begin_suppress_tokens": [12],
    },
}  # fmt: skip
FILTERS: dict[str, dict[str, Any]] = {
    "usual": {},
    "temperature": {"temperature": 0.3, "top_k": 0},
    "top k": {"top_k": 3},
    "more than there are": {"top_k": 99},
    "top p": {"top_k": 0, "top_p": 0.6},
    "the best alone": {"top_k": 0, "top_p": 0.0},
    "min p": {"top_k": 0, "min_p": 0.1},
    "typical": {"top_k": 0, "typical_p": 0.5},
    "epsilon": {"top_k": 0, "epsilon_cutoff": 0.02},
    "eta": {"top_k": 0, "eta_cutoff": 0.05},
    "top h": {"top_k": 0, "top_h": 0.4},
    "as released checkpoints": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    "all together": {
        "temperature": 1.5, "top_h": 0.9, "top_k": 30, "top_p": 0.95, "min_p": 0.01,
        "typical_p": 0.9, "epsilon_cutoff": 0.005, "eta_cutoff": 0.01,
    },
}  # fmt: skip


class Model(GenerationMixin):
    """What transformers' generate needs of a model to make its processors."""

    class config:
        is_encoder_decoder = False

    generation_config = GenerationConfig()


def theirs(fields: dict[str, Any]) -> LogitsProcessorList:
    """The processors that transformers makes for an answer of at most `LENGTH` tokens."""
    config = GenerationConfig(eos_token_id=EOS, max_new_tokens=LENGTH, **fields)
    config.update(**GenerationConfig._get_default_generation_params(), defaults_only=True)
    config._eos_token_tensor = torch.tensor(EOS)
    model: Any = Model()
    config = model._prepare_generated_length(
        config, True, "min_length" not in fields, "input_ids", len(PROMPT), None
    )
    return model._get_logits_processor(config, len(PROMPT), torch.tensor([PROMPT]), device="cpu")


def ours(fields: dict[str, Any], **asked: Any) -> Sampler:
    """The sampler of the same answer."""
    usual = generation_settings(fields, EOS, VOCABULARY, "generation_config.json")
    sampling = choose_sampling(Request("", **asked), usual, len(PROMPT))
    return Sampler(dataclasses.replace(sampling, last=LENGTH), np.array(PROMPT, np.int64))


def next_logits(logits: np.ndarray) -> NextLogits:
    """Logits float32 [V] of a graph that gives their argmax, too."""
    return NextLogits(lambda: logits[None], lambda: logits[None].argmax(axis=1))


def draws(seed: int) -> np.ndarray:
    """Logits of each step; few levels, so that tokens come again."""
    return np.random.default_rng(seed).normal(0, 3, (LENGTH, VOCABULARY)).astype(np.float32)


@pytest.mark.parametrize("fields", RULES.values(), ids=RULES)
def test_greedy_rules_are_those_of_transformers(fields: dict[str, Any]) -> None:
    """Exact but for the last bit: float32 on both sides."""
    processors, sampler, tokens = theirs(fields), ours(fields), list(PROMPT)
    for logits in draws(0):
        wanted = processors(torch.tensor([tokens]), torch.tensor(logits[None]).clone())[0].numpy()
        np.testing.assert_allclose(sampler.processed(logits), wanted, rtol=1e-6)
        token = sampler.choose(next_logits(logits))
        assert token == wanted.argmax()
        tokens.append(token)


@pytest.mark.parametrize("fields", FILTERS.values(), ids=FILTERS)
def test_what_may_be_sampled_is_what_transformers_would_sample(fields: dict[str, Any]) -> None:
    """The same tokens; their probabilities to 1e-5, float64 here and float32 there."""
    fields = {"do_sample": True, **fields}
    processors, sampler = theirs(fields), ours(fields, seed=1)
    for logits in draws(1):
        wanted = torch.softmax(processors(torch.tensor([PROMPT]), torch.tensor(logits[None])), -1)[
            0
        ]
        tokens, weights = sampler.candidates(sampler.processed(logits))
        assert tokens.tolist() == torch.nonzero(wanted).flatten().tolist()
        chances = np.exp(weights - weights.max())
        np.testing.assert_allclose(chances / chances.sum(), wanted[tokens].numpy(), rtol=1e-5)
        assert sampler.choose(next_logits(logits)) in tokens


def test_a_request_goes_before_the_checkpoint() -> None:
    fields = {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    assert ours(fields).options.temperature == 0.7
    asked = ours(fields, temperature=0, top_k=0, top_p=0.5, repetition_penalty=1.0).options
    assert (asked.temperature, asked.top_k, asked.top_p, asked.repetition_penalty) == (0, 0, 0.5, 1)
    greedy, sampled = ours({"temperature": 0.7}), ours({"temperature": 0.7}, temperature=0.7)
    assert (greedy.options.temperature, greedy.options.top_k) == (0, None)
    assert (sampled.options.temperature, sampled.options.top_k) == (0.7, 50)


def test_lengths_are_those_of_transformers() -> None:
    def usual(**fields: Any) -> Generation:
        return generation_settings(fields, EOS, VOCABULARY, "generation_config.json")

    assert usual_length(usual(), 100) == 256
    assert usual_length(usual(max_new_tokens=7), 100) == 7
    assert usual_length(usual(max_length=120), 100) == 20
    assert usual_length(usual(max_length=120, max_new_tokens=9), 100) == 9
    with pytest.raises(LimitError, match="max_length of 100"):
        usual_length(usual(max_length=100), 100)


def test_no_token_left_is_an_error() -> None:
    fields = {"do_sample": True, "suppress_tokens": list(range(VOCABULARY))}
    with pytest.raises(SamplingError, match="leave no token"):
        ours(fields).choose(next_logits(draws(0)[0]))
