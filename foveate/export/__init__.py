"""Checkpoint to bundle: the half that needs torch and transformers."""

from foveate.errors import MissingDependencyError

try:
    import onnxscript  # noqa: F401
    import torch  # noqa: F401
    import transformers
except ImportError as error:
    raise MissingDependencyError(
        f"exporting needs {error.name}, which is not installed: pip install foveate[export]"
    ) from error

from foveate.export.exporter import STAGES, ExportOptions, export
from foveate.export.quantization.options import QuantizationOptions
from foveate.export.verify import verify

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

__all__ = ["STAGES", "ExportOptions", "QuantizationOptions", "export", "verify"]
