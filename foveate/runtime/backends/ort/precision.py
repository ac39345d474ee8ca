"""Which precisions onnxruntime runs where, told before a graph is opened."""

from pathlib import Path

from foveate.bundle.manifest import Precision, quantized
from foveate.errors import BackendError


def check_precision(root: Path, precision: Precision, device: str) -> None:
    """Refuse a bundle whose graphs onnxruntime does not run on a device.

    Args:
        root: The bundle's folder, for messages.
        precision: Its graphs'.
        device: "cpu" or "cuda".

    Raises:
        BackendError: It does not; the message names what does.
    """
    if precision == "bf16" and device == "cpu":
        raise BackendError(
            f"{root}: its graphs are bf16, which onnxruntime's CPU provider cannot run; "
            "export with --precision fp32 or fp16, or use device='cuda'"
        )
    if quantized(precision) and device == "cuda":
        raise BackendError(
            f"{root}: its graphs are {precision}, which onnxruntime's CUDA provider would run in part "
            f"on the CPU; use device='cpu', or build for TensorRT: foveate build {root} --target NAME"
        )
