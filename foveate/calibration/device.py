"""The torch device that calibration runs on."""

import torch

from foveate.errors import BackendError


def pick_device(wanted: str, *, cuda: bool = True) -> torch.device:
    """Find the device for "auto", "cpu" or "cuda"; "auto" takes a CUDA GPU where there is one.

    Args:
        wanted: What the user chose.
        cuda: Whether a CUDA GPU may be used if there is one.

    Raises:
        BackendError: CUDA was chosen and there is none to use.
    """
    found = cuda and torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise BackendError(
            "device 'cuda': torch finds no CUDA GPU that it may use; take --device cpu, or install "
            "torch for this machine's CUDA"
        )
    return torch.device("cuda" if found and wanted != "cpu" else "cpu")
