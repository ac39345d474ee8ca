"""Hostile embedding tables: opening the bundle raises a typed error, and never maps what is not there."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from foveate.bundle.embeddings_file import HEADER_LIMIT
from foveate.bundle.reader import Bundle
from foveate.errors import BundleError
from foveate.runtime.embeddings import EmbeddingTable
from tests.attacks.harness import AGAIN, put, refused, vouch

DATA = bytes(64)
TABLE = {"dtype": "F16", "shape": [8, 4], "data_offsets": [0, 64]}


def file(header: bytes, data: bytes = DATA, length: int | None = None) -> bytes:
    """A safetensors file of a header and data, whatever they say."""
    size = len(header) if length is None else length
    return size.to_bytes(8, "little") + header + data


def table(**changes: object) -> bytes:
    """A file whose header says something else of the table than it should."""
    return file(json.dumps({"embeddings": {**TABLE, **changes}}).encode())


def tensors(data: bytes = DATA, **entries: object) -> bytes:
    """A file with other entries in its header."""
    return file(json.dumps(entries).encode(), data)


def without(field: str) -> bytes:
    """A file whose header lacks a field of the table."""
    return tensors(embeddings={key: value for key, value in TABLE.items() if key != field})


GOOD = json.dumps({"embeddings": TABLE}).encode()
HUGE = GOOD + b" " * HEADER_LIMIT
OTHER = {"dtype": "F16", "shape": [8, 4], "data_offsets": [64, 128]}
SHAPES: list[object] = [
    [], [32], [8, 4, 1], [4, 8], [8, 3], [8, 5], [7, 4], [9, 4], [0, 4], [8, 0], [-8, -4], [-1, 4],
    [8.0, 4], ["8", 4], [True, 32], [8, None], {"8": 4}, None, 32, [2**62, 4], [2**63, 4],
    [10**400, 4], [2**61, 4],
]  # fmt: skip
OFFSETS: list[object] = [
    [], [64], [0, 64, 128], [64, 0], [0, 0], [0, 63], [0, 65], [0, 128], [1, 65], [-64, 0], [-1, 63],
    [-8, 56], [0, -64], [0.0, 64.0], ["0", "64"], [False, 64], None, {}, [0, 2**63], [0, 2**64],
    [2**64, 2**64 + 64],
]  # fmt: skip
ATTACKS: dict[str, bytes] = {
    "empty": b"",
    "a length cut short": b"\1\0\0",
    "a length alone": file(b"", b"", 8),
    "no header": file(b""),
    "header: huge": file(HUGE),
    "header: endless": file(GOOD, length=2**64 - 1),
    "header: past the file": file(GOOD, length=HEADER_LIMIT),
    "header: short by one": file(GOOD, length=len(GOOD) - 1),
    "header: long by one": file(GOOD, length=len(GOOD) + 1),
    "header: no JSON": file(b"\x93NUMPY"),
    "header: not UTF-8": file(b'{"\xff": 1}'),
    "header: deep lists": file(b"[" * HEADER_LIMIT),
    "header: deep objects": file(b'{"a":' * (HEADER_LIMIT // 5)),
    "header: deep metadata": file(
        b'{"__metadata__": {"a": ' + b"[" * 30_000 + b"]" * 30_000 + b"}, " + GOOD[1:]
    ),
    **{
        f"header: {value}": file(value.encode())
        for value in ("null", "1", "true", '"embeddings"', "[]", "{}", '["embeddings"]', "NaN")
    },
    "header: the table twice": file(GOOD[:-1] + b", " + GOOD[1:]),
    "header: a field twice": file(GOOD.replace(b'"shape"', b'"shape": [8, 8], "shape"')),
    "header: metadata that is no text": tensors(embeddings=TABLE, __metadata__={"rows": 8}),
    "tensors: two": tensors(bytes(128), embeddings=TABLE, more=OTHER),
    "tensors: two that overlap": tensors(embeddings=TABLE, more=TABLE),
    "tensors: two, the second unprintable": tensors(embeddings=TABLE, **{"\x1b[2J" * 99: TABLE}),
    "tensors: metadata alone": tensors(__metadata__={"format": "pt"}),
    "tensors: another name": tensors(weight=TABLE),
    "table: no object": tensors(embeddings=[8, 4]),
    **{f"table: no {field}": without(field) for field in TABLE},
    "table: another field": table(strides=[4, 1]),
    **{
        f"dtype: {dtype!r}": table(dtype=dtype)
        for dtype in ("F64", "I64", "BOOL", "F8_E4M3", "f16", "float16", "", None, 16, ["F16"], {})
    },
    "dtype: twice as wide": table(dtype="F32"),
    **{f"shape: {shape!r:.40}": table(shape=shape) for shape in SHAPES},
    **{f"data_offsets: {offsets!r:.40}": table(data_offsets=offsets) for offsets in OFFSETS},
    "data: none": file(GOOD, b""),
    "data: short by one": file(GOOD, bytes(63)),
    "data: half": file(GOOD, bytes(32)),
    "data: long by one": file(GOOD, bytes(65)),
    "data: twice": file(GOOD, bytes(128)),
    "fewer rows than the vocabulary": file(
        GOOD.replace(b"8, 4", b"7, 4").replace(b"64", b"56"), bytes(56)
    ),
    "another width": file(GOOD.replace(b"8, 4", b"8, 8").replace(b"64", b"128"), bytes(128)),
}


def map_table(bundle: Path) -> EmbeddingTable:
    """The table, of a bundle that opens."""
    return EmbeddingTable(Bundle.open(bundle))


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(bundle: Path, name: str) -> None:
    vouch(bundle, ATTACKS[name], "embeddings")
    named = f"{bundle / 'embeddings.safetensors'} does not hold the embedding table: "
    refused(lambda: map_table(bundle), BundleError, named, AGAIN)


def test_a_header_of_the_greatest_size(bundle: Path) -> None:
    vouch(bundle, file(GOOD.ljust(HEADER_LIMIT)), "embeddings")
    assert map_table(bundle).rows.shape == (8, 4)


def test_a_length_that_nobody_could_hold_is_not_read(bundle: Path) -> None:
    """A sparse file as long as its header says: refused before any of it is read."""
    path = bundle / "embeddings.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little"))
    os.truncate(path, 1 << 34)
    put("files/embeddings/bytes", 1 << 34)(bundle)
    named = f"{path} does not hold the embedding table: its header has {1 << 40} bytes"
    refused(lambda: Bundle.open(bundle, checksums=False), BundleError, named, AGAIN)


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 5), ("vocabulary", 9)])
def test_a_model_of_other_sizes(bundle: Path, field: str, value: Any) -> None:
    put(f"model/{field}", value)(bundle)
    refused(lambda: map_table(bundle), BundleError, "embedding table: it is 8 x 4", AGAIN)
