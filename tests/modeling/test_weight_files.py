"""Weights as they lie on disk: which files are read, and what is refused by file and tensor."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.errors import CheckpointError
from foveate.modeling.cast_weights import cast_weights
from foveate.modeling.weight_files import check_weights, read_header, read_headers
from tests.checkpoints import change_json, write_shards
from tests.modeling.reading import read_all, refused


def test_shards_are_read_and_what_the_index_does_not_name_is_not(folder: Path) -> None:
    shards = write_shards(folder)
    (folder / "model-00001-of-00002.part.safetensors").write_bytes(shards[0].read_bytes()[:500])
    checkpoint = read_all(folder)
    assert list(read_headers(checkpoint)) == shards
    half = cast_weights(checkpoint, torch.float16, folder.parent)
    assert {path.name for path in half.root.glob("*.safetensors")} == {one.name for one in shards}
    assert set(read_header(half.root / shards[0].name, half)) == set(load_file(shards[0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_missing_shard_is_named(folder: Path, dtype: torch.dtype) -> None:
    _, last = write_shards(folder, dtype=dtype)
    last.unlink()
    refused(folder, f"mine/{last.name}", "missing")


def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path) -> None:
    write_shards(folder)
    index = folder / "model.safetensors.index.json"
    change_json(index, lambda data: data["weight_map"].update(x="../model.safetensors"))
    refused(folder, "mine/model.safetensors.index.json", "outside")
    change_json(index, lambda data: data["weight_map"].update(x=5))
    refused(folder, "mine/model.safetensors.index.json", "weight_map")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_named(
    folder: Path, dtype: torch.dtype, value: str
) -> None:
    tensors = {name: one.to(dtype) for name, one in load_file(folder / "model.safetensors").items()}
    name = next(name for name in tensors if name.endswith("layers.0.self_attn.q_proj.weight"))
    save_file(tensors, folder / "model.safetensors")
    read_all(folder)
    tensors[name][-1, -1] = float(value)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "mine/model.safetensors", name, "not finite")


def test_weights_beyond_float16_are_named_where_they_are_to_be_it(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    for dtype, value in ((torch.float32, 7e4), (torch.bfloat16, -7e4)):
        changed = {other: one.to(dtype) for other, one in tensors.items()}
        changed[name][0, 0] = value
        save_file(changed, folder / "model.safetensors")
        checkpoint = read_all(folder)
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)} holds 7.*e\+04.*bf16"):
            check_weights(checkpoint, half=True)


def test_a_row_of_an_embedding_table_of_its_own_is_left_to_the_prompts_that_meet_it(
    folder: Path,
) -> None:
    tensors = load_file(folder / "model.safetensors")
    table = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    head = next((name for name in tensors if name.endswith("lm_head.weight")), "lm_head.weight")
    own = {**tensors, head: tensors[table].clone()}
    own[table][7] = float("nan")
    save_file(own, folder / "model.safetensors")
    read_all(folder)
    del own[head]
    save_file(own, folder / "model.safetensors")
    refused(folder, table, "not finite")
