"""Random weights in a checkpoint's shape: enough to measure speed and memory, and nothing else."""

from collections.abc import Callable
from typing import Any

import torch
from torch.types import Device
from transformers import AutoConfig, AutoModelForImageTextToText

from foveate.errors import CheckpointError, cause
from foveate.modeling.checkpoint import Checkpoint

SEED = 0
Build = Callable[[Checkpoint, torch.dtype, str], Any]
"""Makes the model that a checkpoint's configuration describes, with weights of a type and attention by a name."""


def transformers_model(checkpoint: Checkpoint, dtype: torch.dtype, attention: str) -> Any:
    """The model that transformers makes of a checkpoint's config.json."""
    config = AutoConfig.from_pretrained(checkpoint.root)
    return AutoModelForImageTextToText.from_config(
        config, dtype=dtype, attn_implementation=attention
    )


def draw(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    attention: str,
    device: Device = "cpu",
    build: Build = transformers_model,
) -> Any:
    """Build the model that config.json describes, as transformers initialises it; always the same on the same device.

    Matrices are normal (their standard deviation is the configuration's `initializer_range`), norms 1,
    biases 0. Each weight is made in `dtype`, on a GPU where there is one: nothing is ever held twice.

    Args:
        checkpoint: A folder whose weights, if it has any, are not read.
        dtype: Of the weights.
        attention: How attention is computed, as transformers names it.
        device: Where the weights are.
        build: Makes the model, whose `init_weights` draws its weights.

    Raises:
        CheckpointError: transformers cannot build it.
    """
    try:
        with torch.device("meta"):
            model = build(checkpoint, dtype, attention)
        # A GPU draws a large model in a second, a CPU in minutes.
        model.to_empty(device="cuda" if torch.cuda.is_available() else device)
        torch.manual_seed(SEED)
        model.init_weights()
        model.to(device)
        torch.cuda.empty_cache()
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint.name}: transformers cannot build it from its config.json "
            f"({type(error).__name__}: {cause(error)}); correct that file"
        ) from error
    return model.eval()


def count_parameters(model: torch.nn.Module) -> int:
    """How many weights a model has, tied ones once."""
    return sum(weight.numel() for weight in model.parameters())
