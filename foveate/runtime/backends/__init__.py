"""What runs a bundle's graphs: one backend a library, opened by name."""

from foveate.bundle.reader import Bundle
from foveate.errors import BackendError
from foveate.runtime.backends.base import VisualBackend

__all__ = ["BACKENDS", "VisualBackend", "check_name", "open_backend"]

BACKENDS = ("auto", "onnxruntime", "tensorrt")


def open_backend(
    bundle: Bundle,
    name: str = "auto",
    *,
    target: str | None = None,
    device: str = "auto",
    threads: int = 0,
) -> VisualBackend:
    """Open a bundle's graphs in a backend; its library is imported here and nowhere before.

    Args:
        bundle: An open bundle.
        name: "auto", which is onnxruntime, or "onnxruntime" or "tensorrt".
        target: Whose TensorRT engines to run; None where only one target's run here.
        device: "auto", "cpu" or "cuda"; one that cannot be had is an error.
        threads: Threads within an operator of onnxruntime; 0 leaves it to the backend.

    Raises:
        BackendError: The backend or device cannot be had, or cannot run the bundle.
        MissingDependencyError: The backend's library is not installed.
    """
    check_name(name)
    if name == "tensorrt":
        if device not in ("auto", "cuda"):
            raise BackendError(
                f"device {device!r} cannot run TensorRT engines; choose auto or cuda"
            )
        if threads:
            raise BackendError("threads are onnxruntime's; leave them out with TensorRT")
        from foveate.runtime.backends.trt.backend import TensorRTBackend

        return TensorRTBackend.open(bundle, target)
    if target is not None:
        raise BackendError(
            f"the target {target!r} names TensorRT engines, and {name} runs none; choose the backend "
            "tensorrt (--backend tensorrt)"
        )
    if bundle.manifest.operators == "contrib":
        from foveate.runtime.backends.ort_contrib.backend import ContribBackend

        return ContribBackend.open(bundle, device=device, threads=threads)
    from foveate.runtime.backends.ort.backend import OrtBackend

    return OrtBackend.open(bundle, device=device, threads=threads)


def check_name(name: str) -> None:
    """BackendError for a backend that there is not."""
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r} is unknown; choose from {', '.join(BACKENDS)}")
