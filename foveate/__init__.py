"""Foveate: multimodal language models that look only where the question points."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.runtime import Answer, Pipeline, Request

__version__ = "0.1.0"
__all__ = ["Answer", "Pipeline", "Request", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the runtime when it is first asked for."""
    if name in ("Answer", "Pipeline", "Request"):
        from foveate import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module 'foveate' has no attribute {name!r}")
