"""An ONNX graph that is to be rewritten, without its weights."""

from pathlib import Path
from typing import Any

from foveate.errors import MissingDependencyError


def read_model(graph: Path, need: str) -> tuple[Any, Any, Any]:
    """onnx, the model, and its entry for the version of ONNX's own operators.

    Args:
        graph: The file; weights stay where they are.
        need: What needs onnx and how to get it, for the error.

    Raises:
        MissingDependencyError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(need) from error
    model = onnx.load(str(graph), load_external_data=False)
    (version,) = (entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return onnx, model, version
