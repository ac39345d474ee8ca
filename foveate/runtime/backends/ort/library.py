"""onnxruntime, imported in one place: its telemetry is switched off before."""

import contextlib
import functools
import io
import os

from foveate.errors import needed

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
with needed("onnxruntime is not installed: pip install foveate, or foveate[gpu] for CUDA"):
    import onnxruntime as ort

__all__ = ["ort", "preload"]


@functools.cache
def preload() -> None:
    """Load CUDA's libraries from their Python packages, where onnxruntime can and they are installed.

    What it cannot find it looks for again where the system keeps libraries, so it may find none.
    """
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
