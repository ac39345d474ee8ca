"""Model families in torch: one file a family, and what all of them share."""

from foveate.errors import needed

with needed(
    "exporting and training need {}, which is not installed: pip install 'foveate[export]'"
):
    import onnxscript  # noqa: F401
    import torch  # noqa: F401
    import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
