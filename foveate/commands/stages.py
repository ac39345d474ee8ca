"""One request through a backend, stage by stage, to hold two backends against each other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.bundle.manifest import Precision
from foveate.bundle.reader import Bundle
from foveate.families.base import Prompt, VisualInput, user_turn
from foveate.runtime.backends import VisualBackend
from foveate.runtime.keep import select
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import Generation
from foveate.runtime.language.decoder import Decoder
from foveate.runtime.load import read_family, read_tokenizer
from foveate.runtime.sampling import Sampling
from foveate.runtime.tensors import on_host

BOUNDS: dict[Precision, float] = {
    "fp32": 1e-4, "fp16": 5e-2, "bf16": 1e-1, "int8": 0.5, "fp8": 0.5, "int4": 0.5,
}  # fmt: skip
"""Largest difference over largest value that an engine of a precision may have from its graph. fp32 was
seen to stay within 3e-6; where activations are rounded to 8 bits, each library rounds in its own places."""

Arrays = dict[str, NDArray[Any]]


def small_request(bundle: Bundle) -> tuple[VisualInput, Prompt]:
    """A drawn picture and a question about it, as a bundle's family prepares them."""
    rows, columns = np.mgrid[0:224, 0:252]
    channels = (rows * 255 // 224, columns * 255 // 252, (rows // 28 + columns // 28) % 2 * 255)
    picture = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    family = read_family(bundle, read_tokenizer(bundle))
    visual = family.prepare([picture])
    return visual, family.layout(user_turn("What is in the picture?", [picture]), visual)


def run_stages(
    backend: VisualBackend,
    visual: VisualInput,
    prompt: Prompt,
    count: int,
    given: Mapping[str, Any],
) -> Arrays:
    """Run every stage once.

    Args:
        backend: What runs it.
        visual: The pictures.
        prompt: The prompt about them.
        count: How many visual tokens to keep.
        given: What another backend gave: later stages take that in, so that each is held against the
            other's alone. Empty for what this backend gives itself.

    Returns:
        What the stages gave, named "stage.output".
    """
    embeds = backend.encode(visual)
    found: Arrays = {"vision.visual_embeds": on_host(embeds).copy()}
    embeds = given.get("vision.visual_embeds", embeds)
    whole = backend.compress(embeds, backend.stage(prompt, select(visual, 1.0)))
    found["merge.inputs_embeds"] = on_host(whole.embeds)[:, : whole.length].copy()
    kept = backend.compress(embeds, backend.stage(prompt, select(visual, count)))
    found |= {f"compressor.{name}": array for name, array in kept_arrays(kept).items()}
    if given:
        kept = KeptPrompt(
            prompt,
            kept.length,
            given["compressor.inputs_embeds"],
            given["compressor.kept_position_ids"],
            given["compressor.kept_indices"],
        )
    return found | decoder_arrays(backend, kept, given.get("decoder.prefill"))


def kept_arrays(kept: KeptPrompt) -> Arrays:
    """The compressor's outputs in host memory, without what may follow them in theirs."""
    selection, length = kept.selection(), kept.length
    assert kept.scores is not None and selection.relevance is not None
    positions = kept.position_ids
    places = positions if isinstance(positions, np.ndarray) else positions.numpy()
    return {
        "inputs_embeds": on_host(kept.embeds)[:, :length].copy(),
        "kept_position_ids": places[:, :, :length].copy(),
        "kept_indices": selection.indices,
        "relevance": selection.relevance,
        "scores": kept.scores.numpy(),
    }


def decoder_arrays(
    backend: VisualBackend, kept: KeptPrompt, prefill: NDArray[np.float32] | None
) -> Arrays:
    """The logits after a prompt, and after the best token of `prefill`, or else of those."""
    decoder = backend.decoder()
    assert isinstance(decoder, Decoder)
    following = kept.next_position
    settings = Generation(kept.length, following, 2, frozenset(), Sampling())
    cache = decoder.graph.allocate([settings])
    try:
        logits = cache.prefill(0, kept).logits().copy()
        token = int((logits if prefill is None else prefill).argmax())
        step = cache.decode({0: (token, following)})[0].logits()
    finally:
        cache.release(0)
    return {"decoder.prefill": logits, "decoder.step": step.copy()}


def differences(found: Arrays, reference: Mapping[str, Any]) -> dict[str, float]:
    """For each stage the largest difference over the largest value of the output concerned.

    Tokens that were kept instead of others count by how much less relevant they are.
    """
    worst: dict[str, float] = {}
    expected, kept = reference["compressor.kept_indices"], found["compressor.kept_indices"]
    same = np.array_equal(kept, expected)
    for name, wanted in reference.items():
        stage, output = name.split(".")
        if name == "compressor.kept_indices":
            scores = reference["compressor.scores"]
            gap = scores[expected].min() - scores[kept].min()
            distance = max(0.0, float(gap) / float(np.abs(scores).max()))
        elif stage == "compressor" and output in ("inputs_embeds", "kept_position_ids"):
            distance = difference(found[name], wanted) if same else 0.0
        else:
            distance = difference(found[name], wanted)
        worst[stage] = max(worst.get(stage, 0.0), distance)
    return worst


def difference(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The largest difference over the largest value; infinite where shapes differ or values are not finite."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    distance = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0)
    return float(distance / max(float(np.abs(wanted.astype(np.float64)).max(initial=0.0)), 1e-30))
