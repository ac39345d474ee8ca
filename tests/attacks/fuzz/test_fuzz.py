"""Mutated files by the thousand: each is refused by an error of Foveate, or changes nothing.

A well-formed answer may differ only where the mutated file rightly decides it and nothing can tell: a graph,
a table or a template behind its own new checksum, the settings of a manifest or checkpoint, the pixels of
a format without checksums.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from foveate.bundle.reader import Bundle
from tests.attacks.fuzz.report import run

BUNDLES = {"manifests": 2000, "graphs": 200, "texts": 120}
MEDIA = {"pictures": 400, "videos": 120}
CHECKPOINTS = {"checkpoints": 180}
LATER = {
    "manifests": "texts", "graphs": "onnxruntime", "texts": "tokenizer: texts",
    "checkpoints": "generation_config.json: description", "pictures": "PNG", "videos": "mp4",
}  # fmt: skip
"""A stage that some cases of each kind must come to, or the fuzz tries nothing."""


Record = Callable[[str, object], None]


def check(kind: str, folder: Path, cases: int, record: Record) -> None:
    """Run the cases of a kind, and report."""
    report = run(kind, folder, cases)
    record(kind, json.dumps(report.shares()))
    assert report.faults() == []
    assert len(report.outcomes) == cases
    assert {"equal", "refused"} <= {one.verdict for one in report.outcomes.values()}
    assert any(one.stage == LATER[kind] for one in report.outcomes.values())


@pytest.mark.parametrize("kind", BUNDLES)
def test_bundles(tiny_bundle: Bundle, kind: str, record_property: Record) -> None:
    check(kind, tiny_bundle.root, BUNDLES[kind], record_property)


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(tiny_checkpoint: Path, kind: str, record_property: Record) -> None:
    check(kind, tiny_checkpoint, CHECKPOINTS[kind], record_property)


@pytest.mark.parametrize("kind", MEDIA)
def test_media(tmp_path: Path, kind: str, record_property: Record) -> None:
    check(kind, tmp_path, MEDIA[kind], record_property)
