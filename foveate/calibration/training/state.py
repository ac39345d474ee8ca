"""Training's state between two epochs, kept aside so that an interrupted run goes on."""

import hashlib
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from foveate.atomic_write import replace_file
from foveate.bundle.reader import file_digest
from foveate.calibration.training.result import Epoch
from foveate.errors import DataError, OutputExistsError


@dataclass(slots=True)
class TrainingState:
    """Where training stands.

    Attributes:
        key: What it trains on and how; another key is another run.
        weights: f_θ's, as they are.
        optimizer: Adam's state.
        best: f_θ's weights at the lowest validation KL so far.
        history: The epochs so far.
        seconds: How long they took.
        outputs: SHA-256 of the outputs that were written or were to be, by name.
    """

    key: str
    weights: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    outputs: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Replace the state at `path`, whole or not at all."""
        data = io.BytesIO()
        torch.save(asdict(self), data)
        replace_file(path, data.getvalue(), force=True)

    def finish(self, path: Path, output: Path, content: bytes, *, force: bool) -> None:
        """Write an output, unless it is there since this training was stopped after writing it.

        Args:
            path: This state's file, which notes what is written.
            output: The output's.
            content: The output.
            force: Replace another that is there.

        Raises:
            OutputExistsError: Another is there, and `force` was not given.
            OutputError: The disk did not take it.
        """
        if output.is_file() and file_digest(output) == self.outputs.get(output.name):
            return
        self.outputs[output.name] = hashlib.sha256(content).hexdigest()
        self.write(path)
        replace_file(output, content, force=force)

    @classmethod
    def read(cls, path: Path, key: str) -> "TrainingState":
        """Read what `write` wrote.

        Raises:
            DataError: It cannot be read.
            OutputExistsError: It is of another run.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            content["history"] = [Epoch(**epoch) for epoch in content["history"]]
            state = cls(**content)
        except Exception as error:
            raise DataError(
                f"{path}, the state of an interrupted training, cannot be read; "
                f"delete it to begin anew ({error})"
            ) from error
        if state.key != key:
            raise OutputExistsError(
                f"{path} is the state of an interrupted training with other options or samples; give "
                "those again to go on with it, or begin anew with force (--force)"
            )
        return state
