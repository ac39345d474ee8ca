"""Fields that checkpoints of all families have: of transformers' configurations, tokenizers and processors."""

from typing import Any

from foveate.modeling.fields import Honoured, NoEffect, Refused, Table
from foveate.modeling.generation_fields import GENERATION

_WRITER = NoEffect("it says who wrote the file, or what from")
_TRAINING = NoEffect("it is about training")
_RETURNS = NoEffect("it is about what transformers' model returns beside the logits")
_COMPUTES = NoEffect("it is about how transformers computes, and the numbers are the same")
_LABELS = NoEffect("it is about classifying")
_ELSEWHERE = NoEffect("transformers takes it from generation_config.json alone")
_LENGTHS = NoEffect("prompts are neither padded nor cut")
_TOKEN = NoEffect("the token itself stands in tokenizer.json, which is checked")
_SPACES = NoEffect("it is in tokenizer.json, or for tokenizers that have none")
_OWN_CODE = Refused(
    "the checkpoint's own code, which Foveate never runs",
    (),
    "convert the checkpoint to transformers' own classes, or remove it if they load it as it is",
)

_ORIGINAL = (
    "export the original weights that these were made from, with --precision int4 or int8 where the bundle "
    "is to be small"
)
_RUNNERS = {
    "awq": "vLLM",
    "gptq": "vLLM",
    "fp8": "vLLM",
    "compressed-tensors": "vLLM",
    "bitsandbytes": "transformers",
}
"""What runs weights as they are, by how they were quantized."""
QUANTIZED = Refused("quantized weights, which Foveate cannot export", (), _ORIGINAL)


def describe_quantization(held: Any) -> str:
    """Why weights quantized in this way are refused, and what to use instead."""
    method = held.get("quant_method") if isinstance(held, dict) else None
    if (
        method is None
        and isinstance(held, dict)
        and (held.get("load_in_4bit") or held.get("load_in_8bit"))
    ):
        method = "bitsandbytes"
    name = str(method or "another method")[:40]
    runner = _RUNNERS.get(name.lower(), "the library that made them")
    return (
        f"that the weights are quantized ({name}), which Foveate cannot export; {_ORIGINAL}, or run these "
        f"weights as they are with {runner}"
    )


CONFIG: Table = {
    **{
        name: _ELSEWHERE
        for name in GENERATION
        if name
        not in ("eos_token_id", "transformers_version", "output_attentions", "output_hidden_states")
    },
    "model_type": Honoured(str),
    "eos_token_id": Honoured(GENERATION["eos_token_id"].type),  # type: ignore[union-attr]
    "quantization_config": QUANTIZED,
    "compression_config": QUANTIZED,
    "auto_map": _OWN_CODE,
    "custom_pipelines": _OWN_CODE,
    "dtype": NoEffect("the export casts weights to the precision that it is asked for"),
    "torch_dtype": NoEffect("the export casts weights to the precision that it is asked for"),
    "is_encoder_decoder": Refused("an encoder for text, which Foveate does not have", (False,)),
    "chunk_size_feed_forward": _COMPUTES,
    "use_cache": _COMPUTES,
    "attn_implementation": _COMPUTES,
    "_attn_implementation": _COMPUTES,
    "_attn_implementation_autoset": _COMPUTES,
    "_experts_implementation": _COMPUTES,
    "experts_implementation": _COMPUTES,
    "tp_plan": _COMPUTES,
    "pretraining_tp": Refused("layers computed in slices, which round differently", (1,)),
    "output_attentions": _RETURNS,
    "output_hidden_states": _RETURNS,
    "return_dict": _RETURNS,
    "use_return_dict": _RETURNS,
    "torchscript": _RETURNS,
    "initializer_range": _TRAINING,
    "attention_dropout": _TRAINING,
    "hidden_dropout": _TRAINING,
    "dropout": _TRAINING,
    "keys_to_ignore_at_inference": _RETURNS,
    "pruned_heads": Refused("attention heads that are cut out", ({}, [])),
    "architectures": NoEffect("model_type says which model it is"),
    "tokenizer_class": NoEffect("the tokenizer is that of tokenizer.json"),
    "id2label": _LABELS,
    "label2id": _LABELS,
    "num_labels": _LABELS,
    "problem_type": _LABELS,
    "finetuning_task": _LABELS,
    "task_specific_params": _LABELS,
    "transformers_version": _WRITER,
    "_name_or_path": _WRITER,
    "name_or_path": _WRITER,
    "unsloth_version": _WRITER,
    "unsloth_fixed": _WRITER,
}
"""Those of config.json and its parts; families add their own."""

TOKENIZER: Table = {
    "added_tokens_decoder": Honoured(dict[str, dict[str, Any]]),
    "chat_template": Honoured(str | dict[str, str] | list[dict[str, str]]),
    "split_special_tokens": Refused(
        "control tokens are to be cut up like other text, which breaks every prompt here",
        (False,),
        "set it to false",
    ),
    "auto_map": _OWN_CODE,
    "tokenizer_class": NoEffect("the tokenizer is that of tokenizer.json"),
    "backend": NoEffect("the tokenizer is that of tokenizer.json"),
    "tokenizer_file": NoEffect("the tokenizer is that of tokenizer.json"),
    "vocab_file": NoEffect("the tokenizer is that of tokenizer.json"),
    "merges_file": NoEffect("the tokenizer is that of tokenizer.json"),
    "use_fast": NoEffect("the tokenizer is that of tokenizer.json"),
    "is_local": _WRITER,
    "local_files_only": _WRITER,
    "files_loaded": _WRITER,
    "processor_class": _WRITER,
    "name_or_path": _WRITER,
    "special_tokens_map_file": _WRITER,
    "transformers_version": _WRITER,
    "init_inputs": _WRITER,
    "model_max_length": _LENGTHS,
    "max_length": _LENGTHS,
    "max_len": _LENGTHS,
    "padding_side": _LENGTHS,
    "truncation_side": _LENGTHS,
    "truncation_strategy": _LENGTHS,
    "truncation": _LENGTHS,
    "padding": _LENGTHS,
    "stride": _LENGTHS,
    "pad_to_multiple_of": _LENGTHS,
    "pad_token_type_id": _LENGTHS,
    "model_input_names": _RETURNS,
    "return_token_type_ids": _RETURNS,
    "verbose": _RETURNS,
    "errors": _SPACES,
    "add_prefix_space": _SPACES,
    "legacy": _SPACES,
    "sp_model_kwargs": _SPACES,
    "add_bos_token": NoEffect("transformers does not read it where there is a tokenizer.json"),
    "add_eos_token": NoEffect("transformers does not read it where there is a tokenizer.json"),
    "from_slow": _SPACES,
    "spaces_between_special_tokens": _SPACES,
    "clean_up_tokenization_spaces": NoEffect(
        "transformers does not do it for tokenizers of byte pairs, such as every family's here"
    ),
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": Refused(
        "spaces taken out of answers", (False,), "set it to false"
    ),
    "bos_token": _TOKEN,
    "eos_token": _TOKEN,
    "unk_token": _TOKEN,
    "sep_token": _TOKEN,
    "pad_token": _TOKEN,
    "cls_token": _TOKEN,
    "mask_token": _TOKEN,
    "additional_special_tokens": _TOKEN,
    "extra_special_tokens": _TOKEN,
    "model_specific_special_tokens": _TOKEN,
    "image_token": _TOKEN,
    "video_token": _TOKEN,
    "vision_token": _TOKEN,
    "vision_bos_token": _TOKEN,
    "vision_eos_token": _TOKEN,
    "audio_token": _TOKEN,
    "response_template": NoEffect("it is about taking answers apart"),
    "response_schema": NoEffect("it is about taking answers apart"),
    "chat_control_tokens": NoEffect("control tokens are read from tokenizer.json and the template"),
}
"""Those of tokenizer_config.json."""
