"""What an export reads of a checkpoint folder before it loads the weights."""

from pathlib import Path

import pytest

from foveate import families
from foveate.errors import CheckpointError
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.checkpoint_tokenizer import check_rows
from foveate.modeling.families import torch_family
from foveate.modeling.weight_files import check_weights


def read_settings(folder: Path) -> Checkpoint:
    """Read a checkpoint's configuration and its settings of generation and pictures."""
    checkpoint = Checkpoint.open(folder)
    torch_family(checkpoint.family).check(checkpoint)
    checkpoint.generation(512)
    families.settings_from_checkpoint(checkpoint.family, checkpoint.root)
    return checkpoint


def read_all(folder: Path) -> Checkpoint:
    """Read what an export reads before it loads the weights, and look the weights over."""
    checkpoint = read_settings(folder)
    checkpoint.chat_template()
    check_rows(checkpoint.tokenizer(), 512, checkpoint.shown("tokenizer.json"))
    check_weights(checkpoint)
    return checkpoint


def refused(folder: Path, *words: str) -> str:
    """The message of the CheckpointError that a folder is refused with; it holds all words."""
    with pytest.raises(CheckpointError) as caught:
        read_all(folder)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)
