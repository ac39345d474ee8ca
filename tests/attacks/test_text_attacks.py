"""Files behind a matching manifest that libraries cannot read: their errors name the file and the fix."""

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from foveate.bundle.manifest_json import encode
from foveate.bundle.quantization_report import cost_facts
from foveate.bundle.reader import Bundle, file_entry
from foveate.errors import BundleError
from foveate.runtime import Pipeline
from tests.attacks.harness import refused

CONTENTS: list[tuple[str, bytes]] = [
    ("tokenizer", b""),
    ("tokenizer", b"{}"),
    ("tokenizer", b"\xff\xfe"),
    ("tokenizer", b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'),
    ("tokenizer", b"[" * 100_000),
    ("chat_template", b"\xff\xfe"),
    ("chat_template", b"{% for"),
    ("chat_template", b"{{ messages | nonsense }}"),
    ("chat_template", b"{% " + b"(" * 3000),
]


def with_file(bundle: Bundle, root: Path, role: str, name: str, content: bytes) -> Path:
    """A copy of a bundle with another file for a role, and a manifest that agrees to it."""
    shutil.copytree(bundle.root, root, copy_function=os.link)
    for path in (root / name, root / "manifest.json"):
        path.unlink(missing_ok=True)
    (root / name).write_bytes(content)
    files = {**bundle.manifest.files, role: file_entry(root, name)}
    manifest = msgspec.structs.replace(bundle.manifest, files=files)
    (root / "manifest.json").write_bytes(encode(manifest))
    return root


@pytest.mark.parametrize(("role", "content"), CONTENTS)
def test_texts_that_are_none(
    tiny_bundle: Bundle, tmp_path: Path, role: str, content: bytes
) -> None:
    name = tiny_bundle.file(role).name
    root = with_file(tiny_bundle, tmp_path / "bundle", role, name, content)
    refused(lambda: Pipeline.load(root), BundleError, str(root / name), "export the")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[]", b'{"graphs": {"vision": {}}}'])
def test_a_report_that_is_none(tiny_bundle: Bundle, tmp_path: Path, content: bytes) -> None:
    root = with_file(tiny_bundle, tmp_path / "b", "quantization", "quantization.json", content)
    bundle = Bundle.open(root)
    named = f"{root / 'quantization.json'} does not hold what quantization cost"
    refused(lambda: cost_facts(bundle), BundleError, named, "export the checkpoint again")


def test_a_token_that_the_tokenizer_does_not_have(tiny_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.root, root)
    tokens = {**tiny_bundle.manifest.tokens, "image": tiny_bundle.manifest.model.vocabulary - 1}
    manifest = msgspec.structs.replace(tiny_bundle.manifest, tokens=tokens)
    (root / "manifest.json").write_bytes(encode(manifest))
    named = f"{root / 'manifest.json'}: the token 'image' is"
    refused(lambda: Pipeline.load(root), BundleError, named, "export the checkpoint again")


def test_a_table_of_another_type_than_the_graph_takes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    name = tiny_bundle.file("embeddings").name
    data = tiny_bundle.file("embeddings").read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    model = tiny_bundle.manifest.model
    shape = f"[{model.vocabulary}, {model.hidden_size}]".encode()
    assert header.replace(b" ", b"").count(shape.replace(b" ", b"")) == 1
    twice = f"[{2 * model.vocabulary}, {model.hidden_size}]"
    size = len(data) - 8 - len(header)
    other = (
        f'{{"embeddings": {{"dtype": "BF16", "shape": {twice}, "data_offsets": [0, {size}]}}}}'
    ).encode()
    content = len(other).to_bytes(8, "little") + other + data[8 + len(header) :]
    root = with_file(tiny_bundle, tmp_path / "bundle", "embeddings", name, content)
    named = f"{root / name} holds bfloat16, and the graph 'compressor' takes float32"
    refused(lambda: Bundle.open(root), BundleError, named, "export the checkpoint again")
