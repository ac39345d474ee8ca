"""A checkpoint loaded by transformers, with its errors turned into ours."""

from typing import Any

import torch

from foveate.errors import CheckpointError, cause
from foveate.modeling.checkpoint import Checkpoint


def load_model(
    kind: Any,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    attention: str,
    folder: str = "",
    **fields: Any,
) -> Any:
    """Load the weights of one of a checkpoint's folders, all of them.

    Args:
        kind: transformers' class of the model.
        checkpoint: Its folder.
        dtype: Of the weights.
        attention: How attention is computed, as transformers names it.
        folder: Which of its folders; "" is its own.
        fields: Fields of the configuration to use in place of the folder's.

    Raises:
        CheckpointError: transformers cannot load it, or weights are missing or of the wrong shape.
    """
    shown = checkpoint.shown(folder)
    try:
        model, report = kind.from_pretrained(
            checkpoint.root / folder,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            trust_remote_code=False,
            **fields,
        )
    except Exception as error:
        said = cause(error).replace(str(checkpoint.root), checkpoint.name)
        raise CheckpointError(
            f"{shown}: transformers cannot load it ({type(error).__name__}: {said}); correct "
            "its config.json, or download the checkpoint again"
        ) from error
    odd = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    wrong = sorted([*report["missing_keys"], *odd])
    if wrong:
        raise CheckpointError(
            f"{shown}: {len(wrong)} weights are missing or of the wrong shape, "
            f"{wrong[0]} first; correct the sizes in its config.json, or download the checkpoint again"
        )
    return model.eval()
