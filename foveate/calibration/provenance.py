"""What a result was made with: the checkpoint's files, and the versions of the tools."""

import hashlib
from importlib.metadata import version
from typing import Any

from foveate._version import __version__
from foveate.bundle.reader import file_digest
from foveate.modeling.checkpoint import Checkpoint

CHECKPOINT_FILES = ("*.json", "*.jinja", "model*.safetensors", "pytorch_model*.bin")
TOOLS = ("torch", "transformers", "accelerate", "pyarrow", "pillow", "tokenizers", "numpy")


def checkpoint_facts(source: str) -> dict[str, Any]:
    """A checkpoint's name, one SHA-256 for all files that make it what it is, and its family.

    Raises:
        CheckpointError: No checkpoint that can be read.
    """
    checkpoint = Checkpoint.open(source)
    root, form = checkpoint.root, checkpoint.form
    folders = {root, *(root / folder for folder in (form.text, *form.weights))}
    paths = {
        path for folder in folders for pattern in CHECKPOINT_FILES for path in folder.glob(pattern)
    }
    lines = [
        f"{file_digest(path)}  {path.relative_to(root).as_posix()}\n" for path in sorted(paths)
    ]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return {"checkpoint": checkpoint.name, "checkpoint_sha256": digest, "family": checkpoint.family}


def tool_versions() -> dict[str, str]:
    """Foveate's version, and those of what it computes with."""
    return {"foveate": __version__, **{name: version(name) for name in TOOLS}}
