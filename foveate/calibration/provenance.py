"""What a result was made with: the checkpoint's files, and the versions of the tools."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from foveate._version import __version__
from foveate.bundle.reader import file_digest

CHECKPOINT_FILES = ("*.json", "*.jinja", "model*.safetensors", "pytorch_model*.bin")
TOOLS = ("torch", "transformers", "accelerate", "pyarrow", "pillow", "tokenizers", "numpy")


def checkpoint_digest(root: Path) -> str:
    """One SHA-256 for all files that make a checkpoint what it is."""
    paths = {path for pattern in CHECKPOINT_FILES for path in root.glob(pattern)}
    lines = [f"{file_digest(path)}  {path.name}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tool_versions() -> dict[str, str]:
    """Foveate's version, and those of what it computes with."""
    return {"foveate": __version__, **{name: version(name) for name in TOOLS}}
