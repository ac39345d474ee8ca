"""One request through a backend, stage by stage, to hold two backends against each other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.bundle.manifest import Precision
from foveate.bundle.reader import Bundle
from foveate.families.base import Prompt, Vision
from foveate.runtime.backends import Backend
from foveate.runtime.pipeline import read_family, read_tokenizer
from foveate.runtime.tensors import on_host

BOUNDS: dict[Precision, float] = {
    "fp32": 1e-4, "fp16": 5e-2, "bf16": 1e-1, "int8": 0.5, "fp8": 0.5, "int4": 0.5,
}  # fmt: skip
"""Largest difference over largest value that an engine of a precision may have from its graph. fp32 was
seen to stay within 3e-6; where activations are rounded to 8 bits, each library rounds in its own places."""

Arrays = dict[str, NDArray[Any]]


def small_request(bundle: Bundle) -> tuple[Vision, Prompt]:
    """A drawn picture and a question about it, as a bundle's family prepares them."""
    rows, columns = np.mgrid[0:224, 0:252]
    channels = (rows * 255 // 224, columns * 255 // 252, (rows // 28 + columns // 28) % 2 * 255)
    picture = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    family = read_family(bundle, read_tokenizer(bundle))
    vision = family.preprocess([picture])
    return vision, family.layout("What is in the picture?", vision)


def run_stages(
    backend: Backend, vision: Vision, prompt: Prompt, count: int, given: Mapping[str, Any]
) -> Arrays:
    """Run every stage once.

    Args:
        backend: What runs it.
        vision: The pictures.
        prompt: The prompt about them.
        count: How many visual tokens to keep.
        given: What another backend gave: later stages take that in, so that each is held against the
            other's alone. Empty for what this backend gives itself.

    Returns:
        What the stages gave, named "stage.output".
    """
    found: Arrays = {}

    def note(stage: str, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a stage's outputs; what the next stage takes in."""
        found.update({f"{stage}.{name}": value.numpy() for name, value in outputs.items()})
        return {name: given.get(f"{stage}.{name}", value) for name, value in outputs.items()}

    visual = note("vision", {"visual_embeds": backend.encode(vision)})["visual_embeds"]
    feeds = prompt.compressor_feeds(count)
    text_index = feeds["text_index"]
    text = backend.embed(prompt.token_ids[text_index])
    merged = backend.merge(text, visual, text_index, prompt.visual_index)
    found["merge.inputs_embeds"] = on_host(merged)
    asked = backend.place({"text_embeds": text, **feeds})
    kept = note("compressor", backend.compress({**asked, "visual_embeds": visual}))
    length = len(text_index) + count
    found["compressor.inputs_embeds"] = found["compressor.inputs_embeds"][:, :length]
    found["compressor.kept_position_ids"] = found["compressor.kept_position_ids"][:, :, :length]
    sequence = backend.start(length + 2)
    following = sequence.extend(kept["inputs_embeds"], kept["kept_position_ids"], length)
    prefill = found["decoder.prefill"] = following.logits()
    first = int(given.get("decoder.prefill", prefill).argmax())
    found["decoder.step"] = sequence.step(first, prompt.next_position).logits()
    sequence.close()
    return found


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
