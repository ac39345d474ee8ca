"""Relevance maps on disk: what is written comes back, and damage is named."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from foveate.calibration.relevance import store as module
from foveate.calibration.relevance.manifest import MANIFEST, VERSION, Manifest, write_manifest
from foveate.calibration.relevance.store import SHARD_ROWS, Sample, Store, Writer, finish
from foveate.errors import DataError
from tests.calibration.boxes import tiled
from tests.calibration.stores import FIELDS, MADE, write_store


def sample(number: int, rows: int = 3) -> Sample:
    random = np.random.default_rng(number)
    shown = tiled((rows, 2), (1, 4))
    return Sample(
        id=f"s{number:04d}", question=f"Ünd {number}?", answers=("a", "b"), answer="a", tokens=number,
        pictures=("x.png", "y.png"), picture=shown.picture.astype(np.int32), boxes=shown.boxes,
        relevance=random.normal(size=rows * 2 + 4).astype(np.float32),
        attention=random.random((5, rows * 2 + 4)).astype(np.float32),
        instruction=random.integers(1000, size=rows).astype(np.int32),
        words=random.random((rows, rows * 2 + 4)).astype(np.float32),
    )  # fmt: skip


def write(folder: Path, numbers: list[int], rank: int = 0, made: Manifest = MADE) -> None:
    write_store(folder, [sample(number, rows=number % 5 + 1) for number in numbers], rank, made)


def same(one: Sample, other: Sample) -> bool:
    """To the last bit, in the same dtypes."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in Sample.__slots__]
    return all(
        mine.dtype == its.dtype and np.array_equal(mine, its)
        if isinstance(mine, np.ndarray)
        else mine == its
        for mine, its in pairs
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished store of two processes."""
    folder = tmp_path / "maps"
    write(folder, [5, 0, 3, *range(10, 30)], rank=0)
    write(folder, [4, 1], rank=1)
    with Writer(folder, MADE, rank=1, seconds=1e9) as writer:
        writer.add(Sample("w", "Q?", ("a",), answer="b", tokens=1), "wrong", "wrong answer")
        writer.add(Sample("u", "Q?", ("a",)), "unreadable", "no file")
    finish(folder)
    return folder


class TestRead:
    def test_what_was_kept_comes_back_by_id(self, folder: Path) -> None:
        store = Store.open(folder)
        numbers = [0, 1, 3, 4, 5, *range(10, 30)]
        assert len(store) == len(numbers)
        for number, one in zip(numbers, store, strict=True):
            assert same(one, sample(number, rows=number % 5 + 1))
        assert store[2].id == "s0003"
        assert store[-1].id == "s0029"
        with pytest.raises(IndexError):
            store[len(numbers)]

    def test_every_record_is_counted(self, folder: Path) -> None:
        store = Store.open(folder)
        counts = {"kept": 25, "wrong": 1, "unreadable": 1}
        assert store.outcomes() == counts
        assert store.manifest.counts == counts
        assert len(store.ids) == 27
        assert store.ids > {"w", "u"}
        assert sorted(store.manifest.shards or {}) == [
            "part-0-0.arrow",
            "part-1-0.arrow",
            "part-1-1.arrow",
        ]

    def test_samples_may_be_changed(self, folder: Path) -> None:
        store = Store.open(folder)
        store[0].relevance[:] = 0
        store[0].attention[:] = 0
        assert same(store[0], sample(0, rows=1))

    def test_any_arrow_reader_takes_a_shard(self, folder: Path) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(folder / "part-1-0.arrow"))).read_all()
        assert table.column("id").to_pylist() == ["s0004", "s0001"]
        assert table.schema.metadata[b"heads"] == b"5"
        assert table.column("picture").to_pylist()[0] == [0] * 10 + [1] * 4
        boxes = table.column("boxes").to_pylist()[0]
        assert (len(boxes), boxes[-4:]) == (4 * 14, [0.75, 0, 1, 1])
        assert str(table.schema.field("picture").type.value_type) == "int32"
        assert str(table.schema.field("boxes").type.value_type) == "float"


class TestWrite:
    def test_a_shard_is_filled_and_then_there(self, tmp_path: Path) -> None:
        write_manifest(tmp_path, MADE)
        writer = Writer(tmp_path, MADE, rank=3, seconds=1e9)
        for number in range(SHARD_ROWS - 1):
            writer.add(sample(number), "kept")
        assert os.listdir(tmp_path) == [MANIFEST]
        writer.add(sample(SHARD_ROWS), "kept")
        assert sorted(os.listdir(tmp_path)) == [MANIFEST, "part-3-0.arrow"]
        assert len(Store.open(tmp_path)) == SHARD_ROWS

    def test_time_flushes_too(self, tmp_path: Path) -> None:
        write_manifest(tmp_path, MADE)
        writer = Writer(tmp_path, MADE, rank=0, seconds=0)
        for number in range(3):
            writer.add(sample(number), "kept")
        assert len(Store.open(tmp_path).ids) == 3

    @pytest.mark.parametrize("before", [True, False])
    def test_an_interrupt_while_flushing_neither_loses_nor_doubles(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
    ) -> None:
        write_manifest(tmp_path, MADE)
        whole = module.replace_file

        def interrupted(*arguments: object) -> None:
            monkeypatch.setattr(module, "replace_file", whole)
            if not before:
                whole(*arguments)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "replace_file", interrupted)
        with pytest.raises(KeyboardInterrupt), Writer(tmp_path, MADE, 0, seconds=1e9) as writer:
            writer.add(sample(1), "kept")
            writer.flush()
        assert [one.id for one in Store.open(tmp_path)] == ["s0001"]


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        for _ in Store.open(folder):
            pass
    for word in words:
        assert word in str(caught.value)


def manifest(folder: Path, **changes: object) -> None:
    document = json.loads((folder / MANIFEST).read_bytes())
    for name, value in changes.items():
        if value is None:
            document.pop(name)
        else:
            document[name] = value
    (folder / MANIFEST).write_text(json.dumps(document))


class TestAttacks:
    def test_no_store(self, tmp_path: Path) -> None:
        refused(tmp_path, "no relevance maps", "foveate calibrate relevance")
        refused(tmp_path / "none", "no relevance maps")

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"format": "foveate-bundle"}, "not that of relevance maps"),
            ({"version": VERSION + 1}, f"version {VERSION + 1}"),
            ({"version": None}, "version None"),
            ({"rule": None}, "`rule`"),
            ({"more": 1}, "`more`"),
            ({"mode": 1}, "mode"),
            ({"own_answers": None}, "`own_answers`"),
            ({"trial": {"questions": 3}}, "trial"),
            ({"data_sha256": "x"}, "data_sha256"),
            ({"shards": {"../part-0-0.arrow": {"sha256": "0" * 64, "bytes": 1}}}, "names no shard"),
            ({"shards": {"part-7-0.arrow": {"sha256": "0" * 64, "bytes": 1}}}, "is missing"),
            ({"shards": {}}, "is none of this store's shards"),
            ({"mode": "mean"}, "is none of this store's shards"),
        ],
    )
    def test_a_manifest_that_is_wrong(
        self, folder: Path, changes: dict[str, object], word: str
    ) -> None:
        manifest(folder, **changes)
        refused(folder, word)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 10_000])
    def test_a_manifest_that_is_none(self, folder: Path, text: str) -> None:
        (folder / MANIFEST).write_text(text)
        refused(folder, MANIFEST)

    def test_a_shard_that_went(self, folder: Path) -> None:
        (folder / "part-1-0.arrow").unlink()
        refused(folder, "part-1-0.arrow is missing")

    def test_other_files_do_not_matter(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("mine")
        (folder / ".part-0-9.arrow.partial-0123abcd").write_text("half")
        assert len(Store.open(folder)) == 25

    @pytest.mark.parametrize("finished", [True, False])
    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[: len(data) // 2],
            lambda data: data[:-1],
            lambda data: b"",
            lambda data: b"not Arrow",
            lambda data: data + b"\0",
            lambda data: bytes(len(data)),
        ],
    )
    def test_a_damaged_shard(
        self, folder: Path, finished: bool, damage: Callable[[bytes], bytes]
    ) -> None:
        if not finished:
            manifest(folder, counts=None, shards=None)
        path = folder / "part-0-0.arrow"
        path.write_bytes(damage(path.read_bytes()))
        refused(folder, "part-0-0.arrow", "foveate calibrate relevance")

    def test_any_changed_byte_of_a_finished_store(self, folder: Path) -> None:
        path = folder / "part-0-0.arrow"
        data = bytearray(path.read_bytes())
        for place in range(0, len(data), 500):
            data[place] ^= 1
            path.write_bytes(data)
            refused(folder, "part-0-0.arrow", "checksum")
            data[place] ^= 1

    def test_a_shard_of_other_settings(self, tmp_path: Path, folder: Path) -> None:
        manifest(folder, counts=None, shards=None)
        write(tmp_path / "other", [99], made=Manifest(**{**FIELDS, "mode": "mean"}))
        (tmp_path / "other" / "part-0-0.arrow").rename(folder / "part-0-7.arrow")
        refused(folder, "part-0-7.arrow", "none of this store's")

    def test_a_shard_with_other_columns(self, folder: Path) -> None:
        manifest(folder, counts=None, shards=None)
        schema = pa.schema([("id", pa.int64())]).with_metadata({"key": MADE.key()})
        with pa.ipc.new_file(str(folder / "part-0-7.arrow"), schema) as file:
            file.write_batch(pa.record_batch([pa.array([1])], schema=schema))
        refused(folder, "part-0-7.arrow")

    def test_a_sample_twice(self, folder: Path) -> None:
        manifest(folder, counts=None, shards=None)
        data = (folder / "part-0-0.arrow").read_bytes()
        (folder / "part-0-7.arrow").write_bytes(data)
        refused(folder, "part-0-7.arrow", "twice")

    @pytest.mark.parametrize(
        "name", ["picture", "boxes", "relevance", "attention", "instruction", "words"]
    )
    def test_arrays_that_do_not_fit_each_other(self, folder: Path, name: str) -> None:
        manifest(folder, counts=None, shards=None)
        odd = sample(50)
        for array in (getattr(odd, name)[..., :1], getattr(odd, name)[:0]):
            writer = Writer(folder, MADE, rank=9, seconds=1e9)
            writer.add(replace(odd, **{name: array}), "kept")
            writer.flush()
            refused(folder, "part-9-0.arrow", "do not fit")
            (folder / "part-9-0.arrow").unlink()

    def test_a_store_of_the_version_before_is_to_be_made_again(self, folder: Path) -> None:
        manifest(folder, version=VERSION - 1)
        reads = f"version {VERSION - 1}", f"reads {VERSION}"
        refused(folder, MANIFEST, *reads, "make the relevance maps again", "--force")
