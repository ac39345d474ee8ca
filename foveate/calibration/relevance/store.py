"""Relevance maps on disk: a manifest, and Arrow files that are mapped into memory (docs/relevance-format.md)."""

import contextlib
import functools
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from foveate.atomic_write import replace_file
from foveate.bundle.reader import file_digest
from foveate.calibration.relevance import manifest
from foveate.calibration.relevance.manifest import Manifest, Outcome
from foveate.errors import DataError, OutputError, needed

with needed(
    "relevance maps need pyarrow, which is not installed: pip install 'foveate[calibrate]'"
):
    import pyarrow as pa  # type: ignore[import-untyped]

BATCH_ROWS = 8
SHARD_ROWS = 256
FLUSH_SECONDS = 20.0
OPEN_BATCHES = 16

ARRAYS = ("picture", "boxes", "relevance", "attention", "instruction", "words")
"""The columns of numbers, which are empty but for records that were kept."""

LEFTOVER = re.compile(r"\.(part-\d+-\d+\.arrow|manifest\.json)\.partial-[0-9a-f]{8}", re.ASCII)
_AGAIN = (
    "run the same `foveate calibrate relevance` again, which makes what is missing, "
    "or copy the folder again"
)
_COLUMNS = {
    "id": pa.string(),
    "outcome": pa.string(),
    "reason": pa.string(),
    "question": pa.string(),
    "answers": pa.list_(pa.string()),
    "answer": pa.string(),
    "tokens": pa.int32(),
    "pictures": pa.list_(pa.string()),
    "picture": pa.list_(pa.int32()),
    "boxes": pa.list_(pa.float32()),
    "relevance": pa.list_(pa.float32()),
    "attention": pa.list_(pa.float32()),
    "instruction": pa.list_(pa.int32()),
    "words": pa.list_(pa.float32()),
}
_SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])


@dataclass(frozen=True, slots=True)
class Sample:
    """A question that was answered, and what mattered for the answer.

    Attributes:
        id: The record's.
        question: Its text.
        answers: The right answers.
        answer: The model's own.
        tokens: Tokens of that answer, over which R_v is averaged.
        pictures: As the data set names them.
        picture: int32 [N_v], the picture or video frame that each visual token shows.
        boxes: float32 [N_v, 4], the part that it shows: left, top, right, bottom from 0 to 1. Boxes
            may overlap.
        relevance: float32 [N_v], R_v.
        attention: float32 [heads, N_v], A⁰ averaged over the instruction's tokens; its mean over
            heads is A_v⁰.
        instruction: int32 [N_u], the instruction's token ids.
        words: float32 [N_u, N_v], A⁰ of each of them averaged over heads; their mean is A_v⁰ too.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    answer: str = ""
    tokens: int = 0
    pictures: tuple[str, ...] = ()
    picture: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 4), np.float32))
    relevance: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    attention: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    instruction: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    words: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))


class Store:
    """A folder of relevance maps, opened to read; `open` makes one.

    Attributes:
        folder: Where it is.
        manifest: How it was made; its `counts` are None while it is unfinished.
        ids: Of every record that was processed, whatever came of it.
    """

    def __init__(self, folder: Path, made: Manifest, shards: list[Path]) -> None:
        """Read what came of each record; use `Store.open`."""
        self.folder = folder
        self.manifest = made
        self._shards = shards
        self._batch = functools.lru_cache(OPEN_BATCHES)(self._read_batch)
        self._outcomes: Counter[str] = Counter()
        self.ids: set[str] = set()
        places = [place for number in range(len(shards)) for place in self._scan(number)]
        self._places = [place for _, *place in sorted(places)]

    @classmethod
    def open(cls, folder: Path, *, complete: bool = True) -> "Store":
        """Open a store, finished or not.

        Args:
            folder: Where it is.
            complete: Refuse a finished store that lacks a shard or has one more.

        Raises:
            DataError: No store there, or one that is damaged; names the file.
        """
        made = manifest.read_manifest(folder)
        shards = sorted(path for path in folder.iterdir() if manifest.SHARD.fullmatch(path.name))
        for name, entry in (made.shards or {}).items():
            path = folder / name
            if path in shards and file_digest(path) != entry.sha256:
                raise DataError(
                    f"{path} is damaged: its checksum is not {manifest.MANIFEST}'s. {_fix(path)}"
                )
            if complete and path not in shards:
                raise DataError(f"{path} is missing, and {manifest.MANIFEST} lists it; {_AGAIN}")
        if complete and made.shards is not None:
            for path in shards:
                if path.name not in made.shards:
                    raise DataError(f"{path} is none of this store's shards; move it elsewhere")
        return cls(folder, made, shards)

    def outcomes(self) -> dict[str, int]:
        """How many records came out how."""
        return {outcome: self._outcomes[outcome] for outcome in manifest.OUTCOMES}

    def __len__(self) -> int:
        """How many samples were kept."""
        return len(self._places)

    def __iter__(self) -> Iterator[Sample]:
        """The samples that were kept, by id."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """One of the samples that were kept, in the order of their ids.

        Raises:
            DataError: Its shard is damaged.
        """
        shard, batch, row = self._places[index]
        columns = self._batch(shard, batch)
        cells = {name: columns.column(name)[row] for name in _SCHEMA.names}
        arrays = {name: cells[name].values.to_numpy().copy() for name in ARRAYS}
        visual = len(arrays["relevance"])
        heads = len(arrays["attention"]) // visual if visual else 0
        asked = len(arrays["instruction"])
        lengths = {
            "picture": visual,
            "boxes": 4 * visual,
            "attention": heads * visual,
            "words": asked * visual,
        }
        if (
            not heads
            or not asked
            or any(len(arrays[name]) != length for name, length in lengths.items())
        ):
            path = self._shards[shard]
            raise DataError(f"{path} is damaged: its arrays do not fit each other. {_fix(path)}")
        arrays["boxes"] = arrays["boxes"].reshape(visual, 4)
        arrays["attention"] = arrays["attention"].reshape(heads, visual)
        arrays["words"] = arrays["words"].reshape(asked, visual)
        texts = {name: cells[name].as_py() for name in ("id", "question", "answer", "tokens")}
        lists: Any = {name: tuple(cells[name].as_py()) for name in ("answers", "pictures")}
        return Sample(**texts, **lists, **arrays)

    def _scan(self, number: int) -> Iterator[tuple[str, int, int, int]]:
        """Note a shard's outcomes; id, shard, batch and row of each sample that was kept."""
        path = self._shards[number]
        with _reading(path):
            reader = _opened(path, self.manifest.key(), ("id", "outcome"))
            found = [_valid(reader, batch) for batch in range(reader.num_record_batches)]
        for batch, columns in enumerate(found):
            for row, (name, outcome) in enumerate(zip(*columns.to_pydict().values(), strict=True)):
                if outcome not in manifest.OUTCOMES:
                    raise DataError(f"{path} is damaged: an outcome {outcome!r}. {_fix(path)}")
                if name in self.ids:
                    raise DataError(f"{path}: {name!r} is in the store twice; {_fix(path)}")
                self.ids.add(name)
                self._outcomes[outcome] += 1
                if outcome == "kept":
                    yield name, number, batch, row

    def _read_batch(self, shard: int, number: int) -> pa.RecordBatch:
        """Some rows of a shard."""
        path = self._shards[shard]
        with _reading(path):
            return _valid(_opened(path, self.manifest.key(), _SCHEMA.names), number)


class Writer(AbstractContextManager["Writer"]):
    """One process's shards of a store that is `claimed`; a kill costs what is not flushed yet."""

    def __init__(self, folder: Path, made: Manifest, rank: int, seconds: float) -> None:
        """Begin after the process's last shard; flush every so many seconds, or SHARD_ROWS rows."""
        taken = [manifest.SHARD.fullmatch(name) for name in os.listdir(folder)]
        numbers = [int(found[2]) for found in taken if found and int(found[1]) == rank]
        self.folder, self.rank = folder, rank
        self._key = made.key()
        self._number = max(numbers, default=-1) + 1
        self._seconds, self._flushed = seconds, time.monotonic()
        self._rows: list[tuple[Sample, Outcome, str]] = []

    def add(self, sample: Sample, outcome: Outcome, reason: str = "") -> None:
        """Add a record; its arrays only where it was kept.

        Raises:
            OutputError: The disk did not take the shard that this filled.
        """
        self._rows.append((sample, outcome, reason))
        if len(self._rows) >= SHARD_ROWS or time.monotonic() - self._flushed >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last time as one more shard, whole or not at all.

        Raises:
            OutputError: The disk did not take it.
        """
        path = self.folder / f"part-{self.rank}-{self._number}.arrow"
        # An interrupt can fall between the renaming and the forgetting of the rows.
        if self._rows and not path.exists():
            replace_file(path, self._write)
        self._rows = []
        self._number += 1
        self._flushed = time.monotonic()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Flush, unless the disk takes no more."""
        if not isinstance(error, OutputError):
            self.flush()

    def _write(self, file: Any) -> None:
        """Write the rows as an Arrow file."""
        heads = max(len(sample.attention) for sample, _, _ in self._rows)
        about = {"format": manifest.FORMAT, "version": str(manifest.VERSION)}
        about |= {"key": self._key, "heads": str(heads)}
        schema = _SCHEMA.with_metadata(about)
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(file, schema, options=options) as shard:
            for begin in range(0, len(self._rows), BATCH_ROWS):
                rows = [_cells(*row) for row in self._rows[begin : begin + BATCH_ROWS]]
                shard.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


def _cells(sample: Sample, outcome: Outcome, reason: str) -> dict[str, Any]:
    """A record's cells by column; arrays flat."""
    cells = {name: getattr(sample, name) for name in sample.__slots__}
    flat = {name: cells[name].ravel() for name in ARRAYS}
    return {**cells, **flat, "outcome": outcome, "reason": reason}


def finish(folder: Path) -> dict[str, int]:
    """Write the counts and the shards' checksums of a claimed store into its manifest; gives the counts.

    Raises:
        DataError: A shard is damaged.
        OutputError: The disk did not take it.
    """
    found = Store.open(folder, complete=False)
    counts = found.outcomes()
    shards = {
        path.name: manifest.ShardEntry(file_digest(path), path.stat().st_size)
        for path in found._shards
    }
    made = msgspec.structs.replace(found.manifest, counts=counts, shards=shards)
    manifest.write_manifest(folder, made)
    return counts


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what Arrow raises for a damaged file into a DataError."""
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise DataError(f"{path} is damaged ({error}). {_fix(path)}") from error


def _opened(path: Path, key: str, names: Sequence[str]) -> pa.ipc.RecordBatchFileReader:
    """Map a shard into memory and open it, to read some columns; DataError for a stranger."""
    fields = [_SCHEMA.get_field_index(name) for name in names]
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    reader = pa.ipc.open_file(pa.memory_map(str(path)), options=options)
    expected = pa.schema([_SCHEMA.field(name) for name in names])
    made_with = (reader.schema.metadata or {}).get(b"key")
    if made_with != key.encode() or reader.schema.remove_metadata() != expected:
        raise DataError(f"{path} is none of this store's shards; move it elsewhere")
    return reader


def _valid(reader: pa.ipc.RecordBatchFileReader, number: int) -> pa.RecordBatch:
    """A batch whose offsets and text can be trusted."""
    batch = reader.get_batch(number)
    batch.validate(full=True)
    return batch


def _fix(path: Path) -> str:
    """What to do about a damaged shard."""
    return f"Delete {path.name} and {_AGAIN}."
