"""Model families in torch: one file a family, and what all of them share."""

from foveate.errors import MissingDependencyError

try:
    import onnxscript  # noqa: F401
    import torch  # noqa: F401
    import transformers
except ImportError as error:
    raise MissingDependencyError(
        f"exporting and training need {error.name}, which is not installed: "
        "pip install 'foveate[export]'"
    ) from error

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
