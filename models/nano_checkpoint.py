"""The nano checkpoint's folder: tokenizer, chat template, configs and (random) weights.

python models/nano_checkpoint.py models/nano
"""

import argparse
import json
from pathlib import Path

import torch
from tasks.glyphs import SHAPES
from tasks.palette import COLORS, INKS
from tasks.picture import CAPTION, INVENTORY, SHUFFLED
from tasks.sprites import plural
from tasks.wordings import WORDINGS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

VOCABULARY = 640
CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SYSTEM = "You are a helpful assistant."
TEMPLATE = """\
{%- if messages and messages[0].role != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""
EASY = (
    "what is the {c} shape? what color is the shape? does the image contain a {c} shape? does the "
    "image not contain a {s}? is there a {c} shape in the image? is there not a {c} shape? is a {s} "
    "present? is no {c} shape present? what shape is in the image? what shape is present? yes no "
    "rectangle gray black user assistant system "
)


def write_folder(folder: Path, seed: int = 0) -> Qwen2VLForConditionalGeneration:
    """Write everything but trained weights, and give the model with random ones."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": 224 * 224,
            "max_pixels": 448 * 448,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(make_config(tokenizer))
    ids = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config.update(
        eos_token_id=ids, pad_token_id=ids[1], bos_token_id=None, do_sample=False
    )
    return model


def make_config(tokenizer: Tokenizer) -> Qwen2VLConfig:
    """Qwen2-VL's architecture at about seven million parameters."""
    number = tokenizer.token_to_id
    return Qwen2VLConfig(
        text_config={
            "hidden_size": 256,
            "intermediate_size": 640,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "bos_token_id": None,
            "eos_token_id": number("<|im_end|>"),
            "pad_token_id": number("<|endoftext|>"),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [8, 12, 12],
            },
        },
        vision_config={
            "depth": 4,
            "embed_dim": 192,
            "num_heads": 6,
            "hidden_size": 256,
            "mlp_ratio": 4,
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer whose words are those of the questions and answers."""
    tokenizer = Tokenizer(models.BPE())
    split = Regex(r"\p{L}+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(CONTROL) - 8,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROL])
    return tokenizer


def corpus() -> list[str]:
    """Text in which each word is common enough to become a token; letters and digits stand alone."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    lines = [SYSTEM, CAPTION, SHUFFLED, INVENTORY, " ".join("0123456789")]
    colors = [*COLORS, "gray", *INKS]
    shapes = [*SHAPES, "rectangle"]
    things = ["plate with white letters", "plate with black letters", "row", "column", "line"]
    words = [wording for wordings in WORDINGS.values() for wording in wordings]
    for number in range(400):
        color, shape = colors[number % len(colors)], shapes[number % len(shapes)]
        letter, thing = letters[number % len(letters)], things[number % len(things)]
        asked = words[number % len(words)].format(what=f"{color} {thing}", other=f"{color} {shape}")
        counted = f"plates rows columns numbers lines bars shapes {color} shapes the {color} bar"
        lines.append(
            f"{asked} {EASY.format(c=color, s=shape)} {counted} {color} {shape} {plural(shape)} "
            f"{letter} and {letter} bar {letter}\n{color}\n{shape}\n{plural(shape)}\n{letter}"
        )
    return [*lines, *words * 40]


def write_json(path: Path, data: dict[str, object]) -> None:
    """Write JSON for people to read."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write an untrained checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_folder(folder).half().save_pretrained(folder)


if __name__ == "__main__":
    main()
