"""A checkpoint folder that tests may change."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "mine")


@pytest.fixture
def vila_folder(vila_checkpoint: Path, tmp_path: Path) -> Path:
    """A VILA1.5 checkpoint to change."""
    return shutil.copytree(vila_checkpoint, tmp_path / "mine")
