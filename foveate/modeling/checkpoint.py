"""A transformers checkpoint folder, read far enough to export it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foveate import families
from foveate.errors import CheckpointError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder and what its config.json says.

    Attributes:
        root: The folder.
        name: How the user named it: a path or a hub id.
        config: config.json.
        family: Foveate's name of the model family.
    """

    root: Path
    name: str
    config: dict[str, Any]
    family: str

    @classmethod
    def open(cls, source: str | Path) -> "Checkpoint":
        """Open a local folder, or fetch a hub id where there is a network.

        Raises:
            CheckpointError: No such folder or hub id, or no readable config.json in it.
            UnsupportedFamilyError: A family that Foveate does not know.
        """
        root = Path(source)
        if not root.is_dir():
            root = fetch(str(source))
        config = read_json(root / "config.json")
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            raise CheckpointError(
                f"{root / 'config.json'}: no model_type; is this a checkpoint folder?"
            )
        return cls(root, str(source), config, families.from_model_type(model_type))

    def chat_template(self) -> str:
        """The Jinja chat template, from either place where transformers keeps it.

        Raises:
            CheckpointError: There is none.
        """
        file = self.root / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        for name in ("chat_template.json", "tokenizer_config.json"):
            if (self.root / name).is_file():
                template = read_json(self.root / name).get("chat_template")
                if isinstance(template, str):
                    return template
        raise CheckpointError(
            f"{self.root}: no chat template; save one as chat_template.jinja in this folder"
        )

    def required(self, name: str) -> Path:
        """The path of a file that must be there.

        Raises:
            CheckpointError: It is not.
        """
        path = self.root / name
        if not path.is_file():
            raise CheckpointError(
                f"{self.root}: {name} is missing; save the checkpoint with its processor"
            )
        return path

    def setting(self, name: str) -> Any:
        """A setting of generation_config.json, else of config.json; None where neither has it."""
        path = self.root / "generation_config.json"
        return {**self.config, **(read_json(path) if path.is_file() else {})}.get(name)

    def stops(self) -> list[int]:
        """The tokens that end an answer.

        Raises:
            CheckpointError: None is named.
        """
        eos = self.setting("eos_token_id")
        stops = [eos] if isinstance(eos, int) else list(eos or [])
        if not stops:
            raise CheckpointError(
                f"{self.name}: no eos_token_id in generation_config.json; generation could not stop"
            )
        return stops


def release(model: torch.nn.Module) -> None:
    """Free a model's weights even where others (onnxscript's rewrite rules do) still hold the model."""
    for weight in model.parameters():
        weight.data = torch.empty(0, dtype=weight.dtype)


def fetch(name: str) -> Path:
    """Download a hub id's files.

    Raises:
        CheckpointError: No such folder and no such hub id within reach.
    """
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"{name}: no such folder; give a checkpoint folder or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(
            f"{name}: no such folder, and the hub gave nothing ({type(error).__name__}); "
            "download the checkpoint and give its folder"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: Missing, unreadable or no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: {path.name} is missing; is this a checkpoint folder?"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return data
