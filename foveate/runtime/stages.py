"""What comes before the language model, request by request: vision, then compression."""

import time
from collections.abc import Iterable, Iterator

from foveate.errors import BackendError
from foveate.families.base import VisualInput
from foveate.runtime.backends import VisualBackend
from foveate.runtime.encoded import EncodedMedia
from foveate.runtime.generation import AnswerText
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.tensors import wait


def kept_prompts(
    backend: VisualBackend, texts: Iterable[AnswerText]
) -> Iterator[KeptPrompt | None]:
    """Each request's kept prompt, made when the language model takes it in; None where it ended early."""
    for text in texts:
        text.kept = compressed(backend, text)
        text.prefill_began = time.perf_counter()
        yield text.kept


def compressed(backend: VisualBackend, text: AnswerText) -> KeptPrompt | None:
    """Encode and compress what a prepared request is about; None where it ended early."""
    prepared, timing, stop = text.prepared, text.timing, text.stop
    if prepared is None or stop.reason() is not None:
        return None
    mark = time.perf_counter()
    embeds = prepared.media.embeds
    if embeds is None:
        visual = decoded(prepared.media)
        now = time.perf_counter()
        timing.preprocess, mark = timing.preprocess + now - mark, now
        if stop.reason() is not None:
            return None
        embeds = backend.encode(visual)
        del visual
    # Host work, which overlaps with the device's.
    staged = backend.stage(prepared.prompt, prepared.selection, prepared.ranked_by)
    wait(embeds)
    timing.vision = time.perf_counter() - mark
    if stop.reason() is not None:
        return None
    mark = time.perf_counter()
    kept = backend.compress(embeds, staged)
    wait(kept.embeds)
    timing.compress = time.perf_counter() - mark
    return kept


def decoded(media: EncodedMedia) -> VisualInput:
    """Pictures or a video, decoded and prepared.

    Raises:
        ImageError: What cannot be decoded.
        BackendError: Memory does not suffice.
    """
    try:
        return media.family.prepare(media.media)
    except MemoryError as error:
        raise BackendError(
            f"there is not enough memory to prepare pictures of {media.visual.tokens} visual tokens; "
            "use fewer or smaller ones, or free memory"
        ) from error
