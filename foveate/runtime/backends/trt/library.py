"""TensorRT's Python modules: imported by name, with a logger that keeps what they say."""

import importlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from foveate.bundle.manifest import Library
from foveate.errors import MissingDependencyError
from foveate.runtime.backends.trt.fit import NAMES

EXTRAS: dict[Library, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
WARNING = 2


def import_library(library: Library) -> Any:
    """TensorRT's module.

    Raises:
        MissingDependencyError: It is not installed, or does not load.
    """
    try:
        module = importlib.import_module(library)
        str(module.__version__)
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise MissingDependencyError(
            f"{NAMES[library]} cannot be imported ({error}): pip install "
            f"'foveate[{EXTRAS[library]}]'"
            + ("; on a Jetson it comes with JetPack" if library == "tensorrt" else "")
        ) from error
    return module


def installed_version(library: Library) -> str:
    """The version of an installed library; see `choose.Versions`."""
    return str(import_library(library).__version__)


@dataclass(slots=True)
class Log:
    """The last warnings and errors that TensorRT wrote."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=5))

    def take(self) -> str:
        """All of them in a line, which are forgotten then."""
        said = " | ".join(self.lines)
        self.lines.clear()
        return said or "TensorRT gave no reason"


def make_logger(trt: Any, log: Log) -> Any:
    """A logger for TensorRT that keeps its last warnings and errors."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """TensorRT's log lines."""

        def log(self, severity: Any, text: str) -> None:
            """Take a line."""
            if int(severity) <= WARNING:
                log.lines.append(text)

    return Logger()
