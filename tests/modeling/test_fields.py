"""The tables of fields: they know what the installed transformers has, and refuse what they do not know."""

import dataclasses
from typing import Any

import pytest
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaOnevisionConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2VLConfig,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.configuration_qwen2_vl import (
    Qwen2VLTextConfig,
    Qwen2VLVisionConfig,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from foveate.errors import CheckpointError
from foveate.modeling import llava_onevision_fields as llava
from foveate.modeling import vila_fields
from foveate.modeling.common_fields import TOKENIZER
from foveate.modeling.fields import Honoured, NoEffect, Refused, Table, check_fields
from foveate.modeling.generation_fields import GENERATION
from foveate.modeling.qwen2_vl_fields import IMAGES, ROOT, TEXT, VISION
from foveate.modeling.siglip_fields import SIGLIP
from tests.conftest import NANO

FILE = "checkpoint/config.json"
HONOURED = {
    "eos_token_id", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "do_sample",
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias",
    "forced_eos_token_id", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens",
}  # fmt: skip
"""Fields of generation_config.json that reach the bundle."""
ASKING: dict[str, Any] = {
    "num_beams": 4, "num_beam_groups": 2, "constraints": [[1]], "force_words_ids": [[1]],
    "penalty_alpha": 0.6, "dola_layers": "high", "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 2, "use_mtp": True, "guidance_scale": 1.5,
    "watermarking_config": {"greenlist_ratio": 0.25}, "token_healing": True,
    "encoder_repetition_penalty": 1.2, "encoder_no_repeat_ngram_size": 2,
    "remove_invalid_values": True, "num_return_sequences": 2, "stop_strings": ["."], "max_time": 1.5,
    "cache_implementation": "quantized",
}  # fmt: skip
"""What a checkpoint may ask for and would not get."""


def config_fields(kind: type[PreTrainedConfig]) -> set[str]:
    """The fields that a configuration is written with."""
    return {*kind().to_dict(), *(field.name for field in dataclasses.fields(kind))}


def processor_fields(kind: Any) -> set[str]:
    """The settings of an image processor, of its own class and all above it."""
    return {*kind.valid_kwargs.__annotations__, *kind().to_dict()}


def tokenizer_fields() -> set[str]:
    """The settings that a tokenizer keeps of its file, and those of its special tokens."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(NANO / "tokenizer.json"))
    kept = {name for name in vars(tokenizer) if not name.startswith("_")}
    runtime = {"init_kwargs", "deprecation_warnings"}
    return (kept - runtime) | set(tokenizer.SPECIAL_TOKENS_ATTRIBUTES) | {"added_tokens_decoder"}


CLASSES: dict[str, tuple[Table, set[str]]] = {
    "GenerationConfig": (GENERATION, set(GenerationConfig().to_dict())),
    "Qwen2VLConfig": (ROOT, config_fields(Qwen2VLConfig)),
    "Qwen2VLTextConfig": (TEXT, config_fields(Qwen2VLTextConfig)),
    "Qwen2VLVisionConfig": (VISION, config_fields(Qwen2VLVisionConfig)),
    "Qwen2VLImageProcessorPil": (IMAGES, processor_fields(Qwen2VLImageProcessorPil)),
    "LlavaOnevisionConfig": (llava.ROOT, config_fields(LlavaOnevisionConfig)),
    "Qwen2Config": (llava.TEXT, config_fields(Qwen2Config)),
    "LlavaOnevisionImageProcessorPil": (
        llava.IMAGES,
        processor_fields(LlavaOnevisionImageProcessorPil),
    ),
    "SiglipVisionConfig": (SIGLIP, config_fields(SiglipVisionConfig)),
    "LlamaConfig": (vila_fields.TEXT, config_fields(LlamaConfig)),
    "SiglipVisionConfig of VILA": (vila_fields.VISION, config_fields(SiglipVisionConfig)),
    "SiglipImageProcessorPil": (vila_fields.IMAGES, processor_fields(SiglipImageProcessorPil)),
    "VILA's own": (vila_fields.ROOT, config_fields(PreTrainedConfig)),
    "VILA's projector": (vila_fields.PROJECTION, config_fields(PreTrainedConfig)),
    "PreTrainedTokenizerFast": (TOKENIZER, tokenizer_fields()),
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_of_transformers_has_a_rule(name: str) -> None:
    table, fields = CLASSES[name]
    assert len(fields) > 10
    assert not fields - set(table)
    for rule in table.values():
        if isinstance(rule, NoEffect):
            assert rule.because
        elif isinstance(rule, Refused):
            assert rule.because
            assert rule.fix


def test_of_generation_everything_is_honoured_refused_or_without_effect() -> None:
    assert {name for name, rule in GENERATION.items() if isinstance(rule, Honoured)} == HONOURED
    assert {name for name, rule in GENERATION.items() if isinstance(rule, Refused)} == set(ASKING)
    usual = GenerationConfig._get_default_generation_params()
    check_fields({name: usual[name] for name in usual if name != "_"}, GENERATION, FILE)
    check_fields(GenerationConfig().to_dict(), GENERATION, FILE)


@pytest.mark.parametrize("name", ASKING)
def test_what_is_not_to_be_had_is_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {name} is .*: .*; "):
        check_fields({name: ASKING[name]}, GENERATION, FILE)


def test_contrastive_search_is_only_what_transformers_calls_so() -> None:
    check_fields({"penalty_alpha": 0.6, "do_sample": True}, GENERATION, FILE)
    check_fields({"penalty_alpha": 0.0}, GENERATION, FILE)


@pytest.mark.parametrize(
    ("field", "value"),
    [("colour", "blue"), ("flag", False), ("number", 0), ("per_layer_config", [{"a": 1}])],
)
def test_an_unknown_field_is_refused_by_name(field: str, value: object) -> None:
    for table, _ in CLASSES.values():
        with pytest.raises(CheckpointError, match=rf"text_config\.{field} is .*does not know"):
            check_fields({field: value}, table, FILE, "text_config")
        check_fields({field: None, "other": []}, table, FILE)


@pytest.mark.parametrize("value", ["x", [], {}, True, float("nan"), float("inf"), 10**400, -1])
def test_values_of_another_kind_are_refused_by_name(value: object) -> None:
    for table, field in (
        (GENERATION, "repetition_penalty"), (GENERATION, "max_new_tokens"), (TEXT, "num_hidden_layers"),
        (TEXT, "rms_norm_eps"), (VISION, "patch_size"), (IMAGES, "max_pixels"),
        (GENERATION, "bad_words_ids"), (ROOT, "image_token_id"), (ROOT, "vision_config"),
        (llava.ROOT, "image_token_index"), (SIGLIP, "patch_size"), (llava.TEXT, "head_dim"),
    ):  # fmt: skip
        if (field, value) in (("bad_words_ids", []), ("vision_config", {})):
            continue
        with pytest.raises(CheckpointError, match=rf"config\.json: {field} is "):
            check_fields({field: value}, table, FILE)
