"""The table of embedding rows: those of the checkpoint, of every type, or an error."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, BundleError
from foveate.runtime.embeddings import EmbeddingTable
from tests.conftest import NANO
from tests.runtime.backends.trt.engines import copy_of

IDS = np.random.default_rng(0).integers(0, 600, 200)


def parse(data: bytes) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file, as its specification has them."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        kind = {"F32": np.float32, "F16": np.float16}[entry["dtype"]]
        part = np.frombuffer(data[8 + length + begin : 8 + length + end], kind)
        found[name] = part.reshape(entry["shape"])
    return found


def table_file(header: dict[str, Any], data: bytes) -> bytes:
    """The bytes of a safetensors file."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def described(kind: str, rows: NDArray[Any], **changes: Any) -> dict[str, Any]:
    """The header of a table of these rows."""
    entry = {"dtype": kind, "shape": list(rows.shape), "data_offsets": [0, rows.nbytes], **changes}
    return {"__metadata__": {"format": "np"}, "text_embeds": entry}


def test_rows_of_the_table_are_those_of_the_checkpoint(nano_bundle: Bundle) -> None:
    table = EmbeddingTable(nano_bundle)
    weights = parse((NANO / "model.safetensors").read_bytes())
    (wanted,) = (one for name, one in weights.items() if name.endswith("embed_tokens.weight"))
    assert (table.dtype, table.rows.shape) == ("float32", wanted.shape)
    rows = table.look_up(IDS)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, wanted[IDS].astype(np.float32))
    assert table.look_up(np.array([], np.int64)).shape == (0, wanted.shape[1])
    for token in (-1, len(table.rows)):
        with pytest.raises(BackendError, match="outside the table"):
            table.look_up(np.array([token]))


@pytest.mark.parametrize(
    ("kind", "dtype", "held"), [("F32", "float32", "<f4"), ("F16", "float16", "<f2"), ("BF16", "bfloat16", "<u2")]
)  # fmt: skip
def test_a_table_is_read_as_it_is_held(
    nano_bundle: Bundle, tmp_path: Path, kind: str, dtype: str, held: str
) -> None:
    bundle = copy_of(nano_bundle, tmp_path / "bundle")
    width = bundle.manifest.model.hidden_size
    bits = np.random.default_rng(1).integers(0, 2**15, (640, width))
    rows = bits.astype(held)
    bundle.file("embeddings").write_bytes(table_file(described(kind, rows), rows.tobytes()))
    table = EmbeddingTable(bundle)
    assert table.dtype == dtype
    assert table.look_up(IDS).dtype == np.dtype(held)
    assert np.array_equal(table.look_up(IDS), rows[IDS])


ROWS = np.zeros((640, 256), np.float32)
BAD: list[tuple[dict[str, Any], bytes]] = [
    (described("F32", ROWS, shape=[640, 128]), ROWS.tobytes()),
    (described("F32", ROWS, shape=[0, 256]), b""),
    (described("F64", ROWS), ROWS.tobytes()),
    (described("F32", ROWS, data_offsets=[4, ROWS.nbytes]), ROWS.tobytes()),
    (described("F32", ROWS), ROWS.tobytes()[:-1]),
    (described("F32", ROWS), ROWS.tobytes() + b"more"),
    (described("F32", ROWS, shape="640 x 256"), ROWS.tobytes()),
    ({**described("F32", ROWS), "second": described("F32", ROWS)["text_embeds"]}, ROWS.tobytes()),
    ({}, ROWS.tobytes()),
]


@pytest.mark.parametrize(("header", "data"), BAD, ids=range(len(BAD)))
def test_a_file_that_is_no_table(
    nano_bundle: Bundle, tmp_path: Path, header: dict[str, Any], data: bytes
) -> None:
    bundle = copy_of(nano_bundle, tmp_path / "bundle")
    bundle.file("embeddings").write_bytes(table_file(header, data))
    with pytest.raises(BundleError, match="does not hold one table of 256 columns"):
        EmbeddingTable(bundle)


@pytest.mark.parametrize("role", ["decoder", "tokenizer"])
def test_another_file_in_its_place(nano_bundle: Bundle, tmp_path: Path, role: str) -> None:
    bundle = copy_of(nano_bundle, tmp_path / "bundle")
    bundle.file("embeddings").write_bytes(bundle.file(role).read_bytes())
    with pytest.raises(BundleError, match="does not hold one table of 256 columns"):
        EmbeddingTable(bundle)
