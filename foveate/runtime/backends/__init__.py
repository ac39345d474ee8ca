"""What runs a bundle's graphs: one backend a library, opened by name."""

from foveate.bundle import Bundle
from foveate.errors import BackendError
from foveate.runtime.backends.base import Backend

__all__ = ["BACKENDS", "Backend", "open_backend"]

BACKENDS = ("auto", "onnxruntime")


def open_backend(
    bundle: Bundle, name: str = "auto", *, device: str = "auto", threads: int = 0
) -> Backend:
    """Open a bundle's graphs in a backend; its library is imported here and nowhere before.

    Args:
        bundle: An open bundle.
        name: "auto" or "onnxruntime".
        device: "auto", "cpu" or "cuda"; one that cannot be had is an error.
        threads: Threads within an operator; 0 leaves it to the backend.

    Raises:
        BackendError: The backend or device cannot be had, or cannot run the bundle's precision.
    """
    check_name(name)
    from foveate.runtime.backends.onnx import OnnxBackend

    return OnnxBackend.open(bundle, device=device, threads=threads)


def check_name(name: str) -> None:
    """BackendError for a backend that there is not."""
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r} is unknown; choose from {', '.join(BACKENDS)}")
