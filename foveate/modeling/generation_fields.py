"""generation_config.json: what becomes of each field, and the bundle's settings made of them."""

from collections.abc import Mapping
from typing import Any

from foveate.bundle.generation import Generation
from foveate.errors import CheckpointError
from foveate.modeling.fields import (
    Count,
    Factor,
    Honoured,
    Natural,
    NoEffect,
    Number,
    Ratio,
    Refused,
    Share,
    Table,
)

NEW_TOKENS = 256
"""The longest answer where neither checkpoint nor request says; transformers' 20 would be short."""
TOP_K = 50
"""How many tokens transformers samples from where a checkpoint does not say."""
SMALLEST_P = 1e-9
"""A top_p of 0 keeps the best token alone, as this does."""

ONE = (1, 1.0)
MOST = 2**31 + 1
"""More tokens than any vocabulary has."""
Words = list[list[Natural]]
Tokens = Natural | list[Natural]

_COMPUTES = NoEffect("it is about how transformers computes, and the tokens are the same")
_RETURNS = NoEffect("it is about what transformers' generate returns beside the tokens")
_ASSISTED = NoEffect("it is about assisted generation, which another field has to ask for")
_BEAMS = NoEffect("it is about beams, of which there is one")
_WRITER = NoEffect("it says who wrote the file")
_ANOTHER = "Foveate takes one token after the other, greedily or by sampling"
_GREEDY = "set it to null to have the model answer greedily or by sampling"

GENERATION: Table = {
    "eos_token_id": Honoured(Tokens),
    "max_length": Honoured(Count),
    "max_new_tokens": Honoured(Count),
    "min_length": Honoured(Natural),
    "min_new_tokens": Honoured(Natural),
    "do_sample": Honoured(bool),
    "temperature": Honoured(Number),
    "top_k": Honoured(Natural),
    "top_p": Honoured(Share),
    "min_p": Honoured(Share),
    "top_h": Honoured(Ratio),
    "typical_p": Honoured(Ratio),
    "epsilon_cutoff": Honoured(Share),
    "eta_cutoff": Honoured(Share),
    "repetition_penalty": Honoured(Factor),
    "no_repeat_ngram_size": Honoured(Natural),
    "bad_words_ids": Honoured(Words),
    "sequence_bias": Honoured(list[tuple[list[Natural], Number]]),
    "forced_eos_token_id": Honoured(Tokens),
    "exponential_decay_length_penalty": Honoured(tuple[Natural, Factor]),
    "suppress_tokens": Honoured(list[Natural]),
    "begin_suppress_tokens": Honoured(list[Natural]),
    "num_beams": Refused(f"beam search; {_ANOTHER}", ONE, _GREEDY),
    "num_beam_groups": Refused(f"beam search; {_ANOTHER}", ONE, _GREEDY),
    "constraints": Refused(f"constrained beam search; {_ANOTHER}", (), _GREEDY),
    "force_words_ids": Refused(f"constrained beam search; {_ANOTHER}", (), _GREEDY),
    "penalty_alpha": Refused(
        f"contrastive search; {_ANOTHER}",
        lambda value, section: value == 0 or section.get("do_sample") is True,
        _GREEDY,
    ),
    "dola_layers": Refused(f"decoding by contrasting layers; {_ANOTHER}", (), _GREEDY),
    "prompt_lookup_num_tokens": Refused(f"assisted generation; {_ANOTHER}", (), _GREEDY),
    "assistant_early_exit": Refused(f"assisted generation; {_ANOTHER}", (), _GREEDY),
    "use_mtp": Refused(f"assisted generation; {_ANOTHER}", (False,), _GREEDY),
    "guidance_scale": Refused(
        "guidance, which runs the model twice a token; Foveate runs it once", ONE, _GREEDY
    ),
    "watermarking_config": Refused(
        "watermarked answers, which Foveate cannot give", (), "set it to null to do without"
    ),
    "token_healing": Refused(
        "token healing, which changes the prompt's end; Foveate leaves prompts as they are",
        (False,),
        "set it to false to do without",
    ),
    "encoder_repetition_penalty": Refused(
        "a reward for tokens of the prompt, which Foveate cannot give", ONE, "set it to 1.0"
    ),
    "encoder_no_repeat_ngram_size": Refused(
        "a ban on what the prompt says, which Foveate cannot keep",
        (0,),
        "set it to 0, or use no_repeat_ngram_size",
    ),
    "remove_invalid_values": Refused(
        "numbers that are not finite are to be replaced; in Foveate they are an error",
        (False,),
        "set it to false",
    ),
    "num_return_sequences": Refused(
        "several answers to one request; Foveate gives one",
        ONE,
        "set it to 1, and ask several times",
    ),
    "stop_strings": Refused(
        "answers that end at a text; Foveate's end at tokens",
        (),
        "set it to null, and give the text's token to a request as stop_tokens",
    ),
    "max_time": Refused(
        "a limit in seconds, which a bundle cannot have",
        (),
        "set it to null, and limit each request",
    ),
    "cache_implementation": Refused(
        "keys and values of fewer bits, which change answers",
        lambda value, _: value != "quantized",
        "set it to null",
    ),
    "early_stopping": _BEAMS,
    "length_penalty": _BEAMS,
    "diversity_penalty": _BEAMS,
    "low_memory": _BEAMS,
    "renormalize_logits": NoEffect("probabilities are the same after it, and so is their order"),
    "forced_bos_token_id": NoEffect("it counts for prompts of a single token, and none is here"),
    "bos_token_id": NoEffect("it begins an empty prompt, and none is here"),
    "pad_token_id": NoEffect("each answer ends by itself and none is padded"),
    "decoder_start_token_id": NoEffect("it is for models with an encoder for text"),
    "is_assistant": _ASSISTED,
    "num_assistant_tokens": _ASSISTED,
    "num_assistant_tokens_schedule": _ASSISTED,
    "assistant_confidence_threshold": _ASSISTED,
    "assistant_lookbehind": _ASSISTED,
    "assistant_ensemble_weight": _ASSISTED,
    "target_lookbehind": _ASSISTED,
    "max_matching_ngram_size": _ASSISTED,
    "speculation_type": _ASSISTED,
    "use_cache": _COMPUTES,
    "cache_config": _COMPUTES,
    "max_cache_len": _COMPUTES,
    "prefill_chunk_size": _COMPUTES,
    "compile_config": _COMPUTES,
    "disable_compile": _COMPUTES,
    "continuous_batching_config": _COMPUTES,
    "output_attentions": _RETURNS,
    "output_hidden_states": _RETURNS,
    "output_scores": _RETURNS,
    "output_logits": _RETURNS,
    "return_dict_in_generate": _RETURNS,
    "transformers_version": _WRITER,
    "_from_model_config": _WRITER,
    "_commit_hash": _WRITER,
}


def generation_settings(
    held: Mapping[str, Any], eos: list[int], vocabulary: int | None, file: str
) -> Generation:
    """A bundle's generation settings, with transformers' defaults where the checkpoint has none.

    Args:
        held: generation_config.json, checked against `GENERATION`.
        eos: The tokens that end an answer.
        vocabulary: How many tokens there are; None where that is not known yet.
        file: The file as the user named it.

    Raises:
        CheckpointError: Settings that transformers refuses too, or tokens that there are not.
    """
    given = {name: value for name, value in held.items() if value is not None}
    sampled = bool(given.get("do_sample", False))
    temperature = float(given.get("temperature", 1.0))
    if sampled and temperature <= 0:
        raise CheckpointError(
            f"{file}: temperature is {temperature:g} where do_sample is true; set do_sample to false "
            "for greedy answers"
        )
    most, whole = given.get("max_new_tokens"), given.get("max_length")
    least = given.get("min_new_tokens")
    generation = Generation(
        eos=eos,
        max_new_tokens=NEW_TOKENS if most is None and whole is None else most,
        max_length=whole if most is None else None,
        min_new_tokens=least or 0,
        min_length=given.get("min_length", 0) if least is None else 0,
        do_sample=sampled,
        temperature=temperature if temperature > 0 else 1.0,
        top_k=given.get("top_k", TOP_K),
        top_p=max(float(given.get("top_p", 1.0)), SMALLEST_P),
        min_p=float(given.get("min_p", 0.0)),
        typical_p=float(given.get("typical_p", 1.0)),
        epsilon_cutoff=float(given.get("epsilon_cutoff", 0.0)),
        eta_cutoff=float(given.get("eta_cutoff", 0.0)),
        top_h=given.get("top_h"),
        repetition_penalty=float(given.get("repetition_penalty", 1.0)),
        no_repeat_ngram_size=given.get("no_repeat_ngram_size", 0),
        sequence_bias=[(tokens, float(bias)) for tokens, bias in given.get("sequence_bias", [])],
        bad_words_ids=given.get("bad_words_ids", []),
        suppress_tokens=given.get("suppress_tokens", []),
        begin_suppress_tokens=given.get("begin_suppress_tokens", []),
        forced_eos_token_id=as_list(given.get("forced_eos_token_id", [])),
        exponential_decay_length_penalty=_pair(given.get("exponential_decay_length_penalty")),
    )
    check_tokens(generation, MOST if vocabulary is None else vocabulary, file)
    return generation


def check_tokens(generation: Generation, vocabulary: int, file: str) -> None:
    """Refuse settings about tokens that the vocabulary lacks, or about none.

    Raises:
        CheckpointError: There is one.
    """
    words = {
        "bad_words_ids": generation.bad_words_ids,
        "sequence_bias": [tokens for tokens, _ in generation.sequence_bias],
    }
    for name, sequences in words.items():
        if not all(sequences):
            raise CheckpointError(f"{file}: {name} holds a sequence of no tokens; remove it")
    named = {
        name: [one for tokens in sequences for one in tokens] for name, sequences in words.items()
    }
    named |= {
        "eos_token_id": generation.eos,
        "forced_eos_token_id": generation.forced_eos_token_id,
        "suppress_tokens": generation.suppress_tokens,
        "begin_suppress_tokens": generation.begin_suppress_tokens,
    }
    for name, tokens in named.items():
        if tokens and max(tokens) >= vocabulary:
            raise CheckpointError(
                f"{file}: {name} names the token {max(tokens)}, and the model has {vocabulary} "
                "tokens; correct it"
            )


def as_list(tokens: int | list[int]) -> list[int]:
    """One token or several as a list."""
    return [tokens] if isinstance(tokens, int) else tokens


def _pair(value: Any) -> tuple[int, float] | None:
    """A start and a factor."""
    return None if value is None else (value[0], float(value[1]))
