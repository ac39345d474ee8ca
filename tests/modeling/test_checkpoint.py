"""Checkpoint folders as people have them: read like transformers does, or refused by file and field."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from foveate.errors import CheckpointError
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.checkpoint_tokenizer import tokenizer_bytes
from foveate.modeling.weight_files import check_weights
from tests.checkpoints import TEMPLATE, change_json
from tests.modeling.reading import read_all, read_settings, refused

Change = Callable[[dict[str, Any]], Any]


# Chat templates

NAMED = [{"name": "tool_use", "template": "unused"}, {"name": "default", "template": TEMPLATE}]


@pytest.mark.parametrize(
    ("file", "held"),
    list(
        itertools.product(
            ("processor_config.json", "chat_template.json", "tokenizer_config.json"),
            (TEMPLATE, NAMED, {"default": TEMPLATE, "rag": "unused"}),
        )
    ),
)
def test_a_chat_template_from_every_place_in_every_form(
    folder: Path, file: str, held: object
) -> None:
    (folder / "chat_template.jinja").unlink()
    change_json(folder / file, lambda data: data.update(chat_template=held))
    assert read_all(folder).chat_template() == TEMPLATE


@pytest.mark.parametrize(
    ("held", "word"),
    [
        ([{"name": "rag", "template": "x"}], "names rag and no 'default'"),
        ([{"name": "rag"}], "neither a text nor a list"),
        (7, "neither a text nor a list"),
        ("{% if %}", "not a valid chat template"),
    ],
)
def test_a_template_that_is_none_is_refused(folder: Path, held: object, word: str) -> None:
    (folder / "chat_template.jinja").unlink()
    change_json(folder / "tokenizer_config.json", lambda data: data.update(chat_template=held))
    refused(folder, "mine/tokenizer_config.json", word)


# Tokens that end an answer


@pytest.mark.parametrize("place", ["generation_config.json", "config.json", "text_config"])
def test_stop_tokens_from_every_place(folder: Path, place: str) -> None:
    change_json(folder / "generation_config.json", lambda data: data.pop("eos_token_id"))
    change_json(folder / "config.json", lambda data: data["text_config"].pop("eos_token_id", None))
    refused(folder, "no eos_token_id")
    if place == "text_config":
        change_json(folder / "config.json", lambda data: data["text_config"].update(eos_token_id=9))
    else:
        change_json(folder / place, lambda data: data.update(eos_token_id=9))
    assert read_all(folder).stops() == [9]


# Settings


def text(**fields: Any) -> Change:
    return lambda data: data["text_config"].update(fields)


def rope(**fields: Any) -> Change:
    return lambda data: data["text_config"]["rope_parameters"].update(fields)


CONFIGS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "awq": (lambda data: data.update(quantization_config={"quant_method": "awq"}), ("awq", "vLLM")),
    "gptq in text_config": (text(quantization_config={"quant_method": "gptq"}), ("gptq",)),
    "bitsandbytes of old": (
        lambda data: data.update(quantization_config={"load_in_4bit": True}), ("bitsandbytes",)
    ),
    "own code": (lambda data: data.update(auto_map={"AutoModel": "code.Mine"}), ("auto_map", "code")),
    "unknown": (text(mlp_bias=True), ("text_config.mlp_bias", "does not know")),
    "another window": (text(use_sliding_window=True), ("text_config.use_sliding_window", "false")),
    "a window in the layers": (text(layer_types=["sliding_attention"] * 2), ("layer_types",)),
    "heads of another size": (text(head_dim=32), ("text_config.head_dim",)),
    "heads that do not divide": (text(num_attention_heads=5), ("num_attention_heads",)),
    "text for a number": (text(num_hidden_layers="2"), ("text_config.num_hidden_layers", "'2'")),
    "no object": (lambda data: data.update(text_config=[]), ("text_config",)),
    "rope beside": (lambda data: data.update(rope_theta=5.0), ("rope_theta", "text_config")),
    "no sections": (
        lambda data: data["text_config"]["rope_parameters"].pop("mrope_section"), ("mrope_section",)
    ),
    "sections of another head": (rope(mrope_section=[1, 2, 3]), ("mrope_section", "8")),
    "two sections": (rope(mrope_section=[4, 4]), ("mrope_section", "3 numbers")),
    "longrope": (rope(rope_type="longrope", long_factor=[1.0]), ("rope_type", "longrope")),
    "interleaved": (rope(mrope_interleaved=True), ("mrope_interleaved",)),
    "a part of each head": (rope(partial_rotary_factor=0.5), ("partial_rotary_factor",)),
    "rope of another type": (rope(rope_type=3), ("rope_type is 3",)),
    "vision rope": (
        lambda data: data["vision_config"].update(rope_parameters={"rope_type": "yarn"}),
        ("vision_config.rope_parameters.rope_type",),
    ),
    "patches of two sides": (
        lambda data: data["vision_config"].update(patch_size=[14, 28]), ("patch_size", "[14, 28]")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_cannot_be_honoured_is_refused_by_field(folder: Path, name: str) -> None:
    change, words = CONFIGS[name]
    change_json(folder / "config.json", change)
    assert "pip install" not in refused(folder, "mine/config.json", *words)


GENERATIONS: dict[str, Any] = {
    "num_beams": 4, "bad_words_ids": [[]], "suppress_tokens": [512], "eos_token_id": 99999,
    "repetition_penalty": "x", "temperature": None, "forced_eos_token_id": [600],
    "sequence_bias": [[[3], "low"]], "stop_strings": ["."],
}  # fmt: skip


@pytest.mark.parametrize("field", GENERATIONS)
def test_generation_settings_that_cannot_be_honoured_are_refused_by_field(
    folder: Path, field: str
) -> None:
    sampled = {"do_sample": True, "temperature": 0.0} if field == "temperature" else {}
    change = {field: GENERATIONS[field], **sampled}
    change_json(folder / "generation_config.json", lambda data: data.update(change))
    refused(folder, "mine/generation_config.json", field)


def test_image_settings_that_cannot_be_honoured_are_refused_by_field(folder: Path) -> None:
    change_json(folder / "preprocessor_config.json", lambda data: data.update(do_pad=True))
    refused(folder, "mine/preprocessor_config.json", "do_pad")


def test_an_adapter_and_quantized_tensors_are_refused_for_what_they_are(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for extra, word in (
        ("model.layers.0.mlp.up_proj.qweight", "quantized"),
        ("model.layers.0.mlp.up_proj.lora_A.weight", "merge"),
    ):
        save_file(tensors | {extra: torch.zeros(2)}, folder / "model.safetensors")
        refused(folder, "mine/model.safetensors", extra, word)
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "mine/adapter_config.json", "merge")


def test_settings_as_released_checkpoints_have_them_are_taken(folder: Path) -> None:
    """A flat config.json with fields that transformers itself no longer reads, and sampling."""

    def flat(data: dict[str, Any]) -> None:
        text = data.pop("text_config")
        rope = text.pop("rope_parameters")
        data.update({name: value for name, value in text.items() if name != "model_type"})
        data |= {
            "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
            "vision_token_id": 300, "torch_dtype": "bfloat16", "temperature": 0.5,
        }  # fmt: skip
        data["vision_config"] |= {"in_chans": 3, "spatial_patch_size": 14}

    change_json(folder / "config.json", flat)
    sampling = {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1}
    change_json(
        folder / "generation_config.json", lambda data: data.update(sampling, bos_token_id=151643)
    )
    usual = read_all(folder).generation(512)
    assert (usual.do_sample, usual.temperature, usual.top_k, usual.top_p) == (True, 0.01, 1, 0.001)
    assert (usual.max_new_tokens, usual.max_length) == (256, None)


# Tokenizers


def added(folder: Path, file: str, content: str, index: int) -> None:
    """A token that stands in another file than tokenizer.json."""
    if file == "added_tokens.json":
        change_json(folder / file, lambda data: data.update({content: index}))
    else:
        token = {"content": content, "normalized": False, "special": False}
        change_json(
            folder / file,
            lambda data: data.setdefault("added_tokens_decoder", {}).update({str(index): token}),
        )


@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json"])
def test_tokens_beside_tokenizer_json_are_those_of_transformers(folder: Path, file: str) -> None:
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    own = Checkpoint.open(folder).tokenizer()
    assert tokenizer_bytes(folder, own) == (folder / "tokenizer.json").read_bytes()
    added(folder, file, "<|note|>", size)
    added(folder, file, "<|mark|>", size + 1)
    tokenizer = read_all(folder).tokenizer()
    text = "What<|note|> can be<|mark|> seen?"
    theirs = AutoTokenizer.from_pretrained(folder).encode(text)
    assert tokenizer.encode(text).ids == theirs
    assert {size, size + 1} <= set(theirs)
    again = Tokenizer.from_buffer(tokenizer_bytes(folder, tokenizer))
    assert again.encode(text).ids == theirs


def test_tokens_that_cannot_be_had_are_refused_by_name(folder: Path) -> None:
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    for content, index, word in (
        ("<|note|>", size + 5, f"it would be {size}"),
        ("<|note|>", 3, "that is"),
        ("<|im_end|>", size, "it would be"),
    ):
        config = (folder / "tokenizer_config.json").read_bytes()
        added(folder, "tokenizer_config.json", content, index)
        refused(folder, "mine/tokenizer_config.json", content, word)
        (folder / "tokenizer_config.json").write_bytes(config)
    change_json(
        folder / "tokenizer_config.json",
        lambda data: data.update(additional_special_tokens=["<|nowhere|>"]),
    )
    refused(folder, "additional_special_tokens", "<|nowhere|>")


def test_tokens_without_rows_are_refused_with_both_sizes(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"extra{number}" for number in range(200)])
    tokenizer.save(str(folder / "tokenizer.json"))
    refused(folder, "mine/tokenizer.json", str(tokenizer.get_vocab_size()), "512 rows")


# Damage

JUNK = (b"", b"\xff\xfe junk", b"[]", b"null", b"7", b'{"a":', b"{}", b"[" * 100_000, b"\0" * 64)
FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "preprocessor_config.json", "added_tokens.json", "special_tokens_map.json",
    "processor_config.json", "model.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_something_else_is_read_or_named(folder: Path, file: str) -> None:
    for junk in JUNK:
        (folder / file).write_bytes(junk)
        try:
            read_all(folder)
        except CheckpointError as error:
            assert "mine" in str(error)
            assert "\n" not in str(error)
        else:
            assert junk == b"{}"


def test_a_template_that_is_no_utf8_is_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")
    refused(folder, "mine/chat_template.jinja", "UTF-8")


ODD = (None, True, -1, 2.5, 10**30, "x", [], ["x"], [[1]], {}, {"a": 1}, float("nan"))


@pytest.mark.parametrize(
    "file",
    ["config.json", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json"],
)
def test_odd_values_in_every_field_are_taken_or_named(folder: Path, file: str) -> None:
    whole = json.loads((folder / file).read_text())
    parts = {(): whole, **{(name,): part for name, part in whole.items() if isinstance(part, dict)}}
    outcomes = []
    for keys, part in parts.items():
        for field, value in itertools.product(part, ODD):
            changed = json.loads(json.dumps(whole))
            (changed[keys[0]] if keys else changed)[field] = value
            (folder / file).write_text(json.dumps(changed))
            try:
                read_settings(folder).tokenizer()
            except CheckpointError as error:
                outcomes.append(False)
                assert "mine" in str(error)
            else:
                outcomes.append(True)
    assert 0 < sum(outcomes) < len(outcomes)


def test_random_damage_of_weights_and_tokenizer_is_taken_or_named(folder: Path) -> None:
    random = np.random.default_rng(0)
    for file in ("model.safetensors", "tokenizer.json"):
        whole = (folder / file).read_bytes()
        named = 0
        for _ in range(40):
            data = bytearray(whole)
            for place in random.integers(0, 4000, 3):
                data[place] = random.integers(256)
            cut = random.random() < 0.2
            (folder / file).write_bytes(data[: len(data) // 2] if cut else data)
            try:
                checkpoint = Checkpoint.open(folder)
                checkpoint.tokenizer()
                check_weights(checkpoint)
            except CheckpointError as error:
                named += 1
                assert f"mine/{file}" in str(error)
        assert named > 10
        (folder / file).write_bytes(whole)
