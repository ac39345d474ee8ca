"""Small random VILA1.5 checkpoints in the published layout: three folders with their configurations."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.vila import TorchVila, Vila

CONTROL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
META = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""A template of text alone, as language models have them."""
DUMPED: dict[str, Any] = {
    "_name_or_path": "./part", "add_cross_attention": False, "architectures": ["Part"],
    "bad_words_ids": None, "begin_suppress_tokens": None, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0,
    "do_sample": False, "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None, "finetuning_task": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0,
    "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False,
    "output_scores": False, "pad_token_id": None, "prefix": None, "problem_type": None,
    "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0,
    "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None,
    "suppress_tokens": None, "task_specific_params": None, "temperature": 1.0,
    "tf_legacy_loss": False, "tie_encoder_decoder": False, "tie_word_embeddings": False,
    "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": "bfloat16",
    "torchscript": False, "transformers_version": "4.36.2", "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip
"""What transformers of VILA1.5's time wrote into every configuration."""


def write_vila(
    folder: Path,
    *,
    side: int = 54,
    patch: int = 4,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vision_width: int = 32,
    vision_depth: int = 2,
    vision_heads: int = 2,
    projector: str = "mlp_downsample",
    image_token: bool = False,
    shards: bool = False,
    seed: int = 0,
    llm_cfg: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of random weights; `shards` puts the language model's into two files."""
    tokenizer = train_llama_tokenizer(image_token)
    rows = tokenizer.get_vocab_size() + 7
    text = {
        **DUMPED,
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<|begin_of_text|>"),
        "eos_token_id": tokenizer.token_to_id("<|end_of_text|>"),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 4096,
        "model_max_length": 4096,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tokenizer_model_max_length": 4096,
        "tokenizer_padding_side": "right",
        "use_cache": True,
        "vocab_size": rows,
        **(llm_cfg or {}),
    }
    tower = {
        **DUMPED,
        "model_type": "siglip_vision_model",
        "attention_dropout": 0.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": vision_width,
        "image_size": side,
        "intermediate_size": 2 * vision_width,
        "layer_norm_eps": 1e-06,
        "num_attention_heads": vision_heads,
        "num_channels": 3,
        "num_hidden_layers": vision_depth,
        "patch_size": patch,
    }
    between = {**DUMPED, "model_type": "v2l_projector", "mm_projector_type": projector}
    parts = {"llm": text, "vision_tower": tower, "mm_projector": between}
    for name, config in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_json(folder / name / "config.json", config)
    write_json(
        folder / "config.json",
        {
            "_name_or_path": "./vlm",
            "architectures": ["LlavaLlamaModel"],
            "drop_path_rate": 0.0,
            "hidden_size": hidden,
            "image_aspect_ratio": "resize",
            "interpolate_mode": "linear",
            **{f"{name}_cfg": config for name, config in parts.items()},
            "mm_hidden_size": vision_width,
            "mm_projector_lr": None,
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": "cls_patch",
            "mm_vision_select_layer": -2,
            "model_dtype": "torch.bfloat16",
            "model_type": "llava_llama",
            "num_video_frames": 8,
            "resume_path": "./vlm",
            "s2": False,
            "s2_max_split_size": 336,
            "s2_scales": "336,672,1008",
            "transformers_version": "4.36.2",
            "tune_language_model": True,
            "tune_mm_projector": True,
            "tune_vision_tower": True,
            "vision_resolution": -1,
        },
    )
    write_json(
        folder / "vision_tower" / "preprocessor_config.json",
        {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "SiglipImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "SiglipProcessor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": side, "width": side},
        },
    )
    tokenizer.save(str(folder / "llm" / "tokenizer.json"))
    write_json(
        folder / "llm" / "tokenizer_config.json",
        {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|end_of_text|>",
            "chat_template": META,
            "clean_up_tokenization_spaces": True,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 4096,
            "pad_token": "[PAD]",
            "padding_side": "right",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    pad = tokenizer.get_vocab_size()
    write_json(folder / "llm" / "added_tokens.json", {"[PAD]": pad})
    write_json(
        folder / "llm" / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": text["bos_token_id"],
            "eos_token_id": text["eos_token_id"],
            "transformers_version": "4.36.2",
        },
    )
    write_weights(folder, text, tower, between, shards=shards, seed=seed)
    return folder


def load_vila(folder: Path, dtype: torch.dtype = torch.float32) -> Vila:
    """A checkpoint's model."""
    return TorchVila().load(Checkpoint.open(folder), dtype, "eager")


def write_weights(
    folder: Path,
    text: dict[str, Any],
    tower: dict[str, Any],
    between: dict[str, Any],
    *,
    shards: bool,
    seed: int,
) -> None:
    """Random weights of all parts, under the names that published checkpoints have."""
    torch.manual_seed(seed)
    llm = LlamaForCausalLM(LlamaConfig.from_dict({**text, "initializer_range": 0.1}))
    save(folder / "llm", scattered(llm), 2 if shards else 1)
    vision = scattered(SiglipVisionModel(SiglipVisionConfig.from_dict(tower)))
    save(folder / "vision_tower", {f"vision_model.{name}": one for name, one in vision.items()}, 1)
    merged, hidden = 4 * tower["hidden_size"], text["hidden_size"]
    shapes = {
        "layers.1.weight": (merged,), "layers.1.bias": (merged,),
        "layers.2.weight": (hidden, merged), "layers.2.bias": (hidden,),
        "layers.4.weight": (hidden, hidden), "layers.4.bias": (hidden,),
    }  # fmt: skip
    save(
        folder / "mm_projector",
        {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()},
        1,
    )


def scattered(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights, biases and norms among them drawn too, so that each counts."""
    state = {name: one.clone() for name, one in model.state_dict().items()}
    for name, one in state.items():
        if name.endswith("bias"):
            one.normal_(std=0.05)
        elif "norm" in name:
            one.normal_(1, 0.1)
    return state


def save(folder: Path, tensors: dict[str, torch.Tensor], count: int) -> None:
    """Weights in one file, or in several with an index."""
    if count == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names, placed = sorted(tensors), {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[number::count]}
        save_file(part, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": placed})


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(data))


@lru_cache(2)
def train_llama_tokenizer(image_token: bool = False) -> Tokenizer:
    """A byte-level BPE tokenizer with some of Llama 3's control tokens, which begins texts as it does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    lines = [
        "You are a helpful language and vision assistant.",
        "What can be seen in the pictures?",
    ]
    tokenizer.train_from_iterator(lines, trainer)
    control = [*CONTROL, "<image>"] if image_token else CONTROL
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos} $B",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            ),
        ]
    )
    return tokenizer
