"""The engines of language models, opened by name."""

from foveate.errors import BackendError
from foveate.runtime.backends.base import VisualBackend
from foveate.runtime.language.base import LanguageModel

LANGUAGES = ("auto", "decoder")


def open_language(backend: VisualBackend, name: str = "auto") -> LanguageModel:
    """Open a bundle's language model beside its visual half.

    Args:
        backend: What runs vision and compressor.
        name: "auto", which is "decoder", the bundle's own decoder graph in the same library.

    Raises:
        BackendError: There is no such engine.
    """
    if name not in LANGUAGES:
        raise BackendError(f"language {name!r} is unknown; choose from {', '.join(LANGUAGES)}")
    return backend.decoder()
