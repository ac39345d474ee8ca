"""The embedding table as readers map it; tests/attacks is about hostile ones."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from foveate.bundle.reader import Bundle, file_entry
from foveate.errors import BackendError
from foveate.runtime.embeddings import EmbeddingTable
from tests.bundle.example import GOLDEN, write

TYPES = {"F32": ("float32", "<f4"), "F16": ("float16", "<f2"), "BF16": ("bfloat16", "<u2")}


def bundle_of(folder: Path, header: str, data: bytes) -> Bundle:
    """The example bundle with another embedding table."""
    bundle = write(folder / "bundle")
    path = bundle.file("embeddings")
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)
    files = {**bundle.manifest.files, "embeddings": file_entry(bundle.root, path.name)}
    return Bundle(bundle.root, msgspec.structs.replace(bundle.manifest, files=files))


def test_the_golden_table() -> None:
    table = EmbeddingTable(Bundle.open(GOLDEN))
    assert (table.dtype, table.rows.dtype, table.rows.shape) == ("float16", np.float16, (8, 4))
    np.testing.assert_array_equal(table.rows, np.arange(32).reshape(8, 4))


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("padding", range(8))
def test_rows_of_each_type_wherever_the_data_begin(tmp_path: Path, code: str, padding: int) -> None:
    dtype, held = TYPES[code]
    values = np.arange(32, dtype=held).reshape(8, 4)
    entry = {"dtype": code, "shape": [8, 4], "data_offsets": [0, values.nbytes]}
    header = json.dumps({"embeddings": entry}) + " " * padding
    table = EmbeddingTable(bundle_of(tmp_path, header, values.tobytes()))
    assert (table.dtype, table.rows.dtype) == (dtype, np.dtype(held))
    found = table.look_up(np.array([7, 0, 7, 3]))
    np.testing.assert_array_equal(found, values[[7, 0, 7, 3]])
    assert found.dtype == np.dtype(held)


def test_rows_over_the_vocabulary_and_metadata_are_allowed(tmp_path: Path) -> None:
    values = np.arange(36, dtype="<f4").reshape(9, 4)
    entry = {"dtype": "F32", "shape": [9, 4], "data_offsets": [0, values.nbytes]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "embeddings": entry})
    table = EmbeddingTable(bundle_of(tmp_path, header, values.tobytes()))
    np.testing.assert_array_equal(table.look_up(np.array([8])), values[8:])


def test_the_table_is_mapped_and_cannot_be_written() -> None:
    table = EmbeddingTable(Bundle.open(GOLDEN))
    assert isinstance(table.rows, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        table.rows[0] = 1
    found = table.look_up(np.array([1]))
    found[0] = 1
    assert table.rows[1, 0] == 4


def test_no_ids_have_no_rows() -> None:
    found = EmbeddingTable(Bundle.open(GOLDEN)).look_up(np.zeros(0, np.int64))
    assert (found.shape, found.dtype) == ((0, 4), np.float16)


@pytest.mark.parametrize("ids", [[8], [-1], [0, 8], [2**40], [-(2**40), 0]])
def test_ids_outside_the_table(ids: list[int]) -> None:
    with pytest.raises(BackendError, match="a token id is outside the table's 8 rows"):
        EmbeddingTable(Bundle.open(GOLDEN)).look_up(np.array(ids))
