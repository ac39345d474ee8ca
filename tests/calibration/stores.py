"""Stores of made-up relevance maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.calibration.relevance.manifest import Manifest, write_manifest
from foveate.calibration.relevance.store import Sample, Writer

FIELDS: dict[str, Any] = {
    "checkpoint": "models/nano", "checkpoint_sha256": "0" * 64, "family": "qwen2_vl", "mode": "grad",
    "dtype": "fp32", "rule": "exact", "keep_wrong": False,
    "own_answers": False, "max_new_tokens": 64, "data": "d",
    "data_sha256": "1" * 64, "tools": {},
}  # fmt: skip
MADE = Manifest(**FIELDS)


def write_store(
    folder: Path, samples: Sequence[Sample], rank: int = 0, made: Manifest = MADE
) -> None:
    """One process's samples, all kept; the store is unfinished."""
    folder.mkdir(exist_ok=True)
    write_manifest(folder, made)
    with Writer(folder, made, rank, seconds=1e9) as writer:
        for sample in samples:
            writer.add(sample, "kept")
