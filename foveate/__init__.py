"""Foveate: multimodal language models on the visual tokens that a question needs."""

from foveate._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from foveate.runtime import Answer, Pipeline, Request

__all__ = ["Answer", "Pipeline", "Request", "__version__"]


def __getattr__(name: str) -> "Any":
    """Import the runtime when one of its names is first used."""
    if name in ("Answer", "Pipeline", "Request"):
        from foveate import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module 'foveate' has no attribute {name!r}")
