"""What the tests of evaluation share: scenes with boxes, a checkpoint and a bundle that answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.bundle.reader import Bundle as OpenedBundle
from foveate.calibration.dataset import Record, read_records
from foveate.calibration.evaluation.bundle import Bundle, LoadedBundle
from foveate.calibration.evaluation.checkpoint import Checkpoint, LoadedCheckpoint
from foveate.calibration.evaluation.rankings import find_rankings
from foveate.calibration.torch_model import TorchModel
from tests.calibration.scenes import write_scenes
from tests.conftest import NANO


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of four squares, four questions each."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), (1, 2))


@pytest.fixture(scope="session")
def boxed(scenes: Path) -> list[Record]:
    """Their questions."""
    return read_records(scenes)


@pytest.fixture(scope="session")
def subject(model: TorchModel) -> LoadedCheckpoint:
    """Nano, ranked by attention."""
    return LoadedCheckpoint(model, {one.name: one for one in find_rankings([])}, 8, 16)


@pytest.fixture(scope="module")
def bundle_subject(nano_bundle: OpenedBundle) -> Iterator[LoadedBundle]:
    """Nano's bundle."""
    bundle = Bundle(nano_bundle.root, {"device": "cpu"}, max_new_tokens=8, batch=16)
    with bundle.load() as loaded:
        yield loaded


def checkpoint(*rank: str) -> Checkpoint:
    """Nano before it is loaded."""
    return Checkpoint(str(NANO), rank, device="cpu", max_new_tokens=8, batch=16)
