"""Plans the optimization profiles of engines: a target's ranges, within the bundle's limits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from foveate.bundle.manifest import GATHER, ROWS, AxisRange, GraphSpec, Manifest, Profile, Span
from foveate.errors import ExportError
from foveate.export.tensorrt.axes import axis_size
from foveate.export.tensorrt.targets import Range, Target

Sizes = tuple[int, int, int]
"""The smallest size, the one that an engine is tuned for, and the largest."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One optimization profile of a graph.

    Attributes:
        name: The profile's name, such as "prefill".
        axes: The sizes of each named axis.
        values: The values of inputs that are sizes themselves.
    """

    name: str
    axes: dict[str, Sizes]
    values: dict[str, Sizes] = field(default_factory=dict)

    def sizes(self, which: int) -> dict[str, int]:
        """The sizes of all axes: 0 smallest, 1 tuned for, 2 largest."""
        return {axis: sizes[which] for axis, sizes in self.axes.items()}

    def ranges(self, spec: GraphSpec, role: str) -> Profile:
        """The shapes of every input of a graph, for the manifest and for TensorRT.

        Raises:
            ExportError: An axis that the plan has no sizes for.
        """
        try:
            shapes: dict[str, Span] = {
                tensor.name: tuple(  # type: ignore[misc]
                    [axis_size(axis, self.sizes(which)) for axis in tensor.shape]
                    for which in range(3)
                )
                for tensor in spec.inputs
            }
        except ValueError as error:
            raise ExportError(
                f"{role}: {error}. Export the checkpoint again with this version of foveate."
            ) from None
        values = {name: ([low], [best], [most]) for name, (low, best, most) in self.values.items()}
        return Profile(shapes=shapes, values=values)


def plan_profiles(manifest: Manifest, target: Target) -> dict[str, list[Plan]]:
    """The profiles of every graph of a bundle, in the manifest's order.

    Raises:
        ExportError: A graph that there are no profiles for.
    """
    limits, ranges = manifest.limits, target.ranges
    visual = _clamped(ranges.visual, limits.visual_tokens)
    text = _clamped(ranges.text, limits.prompt_tokens)
    keep = _clamped(ranges.keep, visual[2])
    prompt = _clamped(ranges.prompt, limits.prompt_tokens)
    cache = _clamped(ranges.cache, limits.prompt_tokens)
    compressor = {
        "text": text,
        "visual": visual,
        "instruction": text,
        "prompt": (2, text[1] + visual[1], text[2] + visual[2]),
        **_kept(manifest.graphs, keep),
    }
    picture = _clamped(ranges.picture or ranges.visual, visual[2])
    vision = vision_ranges(manifest.vision_axes, picture, (1, *ranges.pictures))
    known = {
        "vision": [Plan("default", vision)],
        GATHER: [Plan("default", {"visual": visual, ROWS: (1, *vision.get(ROWS, visual)[1:])})],
        "compressor": [Plan("default", compressor, {"keep": keep})],
        "decoder": _decoder_plans(target, prompt, cache),
    }
    for role in manifest.graphs.keys() - known.keys():
        raise ExportError(
            f"{role}: no target has profiles for this graph. Upgrade foveate, or export the "
            "checkpoint again with this version."
        )
    return {role: known[role] for role in manifest.graphs}


def vision_ranges(
    axes: Mapping[str, AxisRange], visual: Sizes, pictures: Sizes
) -> dict[str, Sizes]:
    """The sizes of the axes of the vision graph, and of the number of its rows.

    Args:
        axes: How long each axis is, by its name.
        visual: Visual tokens of a run.
        pictures: Pictures of a request.
    """

    def length(axis: AxisRange, which: int) -> int:
        tokens = math.ceil(axis.per_token * visual[which])
        return tokens + axis.per_picture * pictures[which] + axis.plus

    return {
        name: (length(axis, 0), length(axis, 1), length(axis, 2)) for name, axis in axes.items()
    }


def _kept(graphs: Mapping[str, GraphSpec], keep: Sizes) -> dict[str, Sizes]:
    """The sizes of the axis that counts kept tokens, by the name that the compressor gives it."""
    outputs = graphs["compressor"].outputs if "compressor" in graphs else []
    return {str(tensor.shape[0]): keep for tensor in outputs if tensor.name == "kept_indices"}


def _decoder_plans(target: Target, prompt: Sizes, cache: Sizes) -> list[Plan]:
    """The profiles of a decoder: for prefill and for decode steps, or one for both.

    Of a static decoder's the first that fits is used, so the one for decode steps is first.
    """
    one, none = (1, 1, 1), (0, 0, 0)
    if target.decoder == "static":
        several = (1, min(prompt[1], cache[2]), min(prompt[2], cache[2]))
        plans = {"decode": {"sequence": one}, "prefill": {"sequence": several}}
        both = {"sequence": (1, 1, several[2])}
    else:
        longer = (cache[0] + 1, cache[1] + 1, cache[2] + 1)
        plans = {
            "prefill": {"sequence": prompt, "past": none, "total": prompt},
            "decode": {"sequence": one, "past": cache, "total": longer},
        }
        both = {
            "sequence": (1, 1, prompt[2]),
            "past": (0, cache[1], cache[2]),
            "total": (1, longer[1], prompt[2] + cache[2]),
        }
    chosen = plans if target.decoder_profiles == 2 else {"default": both}
    return [Plan(name, {"batch": one, **axes}) for name, axes in chosen.items()]


def cache_capacity(manifest: Manifest, target: Target) -> int:
    """The number of tokens that the cache of a static decoder has room for."""
    return _clamped(target.ranges.cache, manifest.limits.prompt_tokens)[2]


def _clamped(chosen: Range, limit: int) -> Sizes:
    """A target's range, from 1 to at most a bundle's limit."""
    return 1, min(chosen[0], limit), min(chosen[1], limit)
