"""onnxruntime, imported in one place: its telemetry is switched off before."""

import os

from foveate.errors import MissingDependencyError

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError(
        "onnxruntime is not installed: pip install foveate, or foveate[gpu] for CUDA"
    ) from error

__all__ = ["ort"]
