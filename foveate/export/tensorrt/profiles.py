"""The sizes that engines are built for: the target's ranges within the bundle's limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from foveate.bundle.manifest import GraphSpec, Manifest, Profile, Span
from foveate.errors import ExportError
from foveate.export.tensorrt.axes import axis_size
from foveate.export.tensorrt.targets import Range, Target

LOOKUPS = ("embeddings",)
"""Graphs that get no engine: they only look rows up, and an engine would hold the table again."""

Sizes = tuple[int, int, int]
"""Smallest, best, largest."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One profile of a graph.

    Attributes:
        name: What it is for.
        axes: The sizes of each named axis.
        values: What inputs that are sizes themselves hold.
    """

    name: str
    axes: dict[str, Sizes]
    values: dict[str, Sizes] = field(default_factory=dict)

    def sizes(self, which: int) -> dict[str, int]:
        """The sizes of all axes: 0 smallest, 1 best, 2 largest."""
        return {axis: sizes[which] for axis, sizes in self.axes.items()}

    def ranges(self, spec: GraphSpec, role: str) -> Profile:
        """The shapes of every input of a graph, for the manifest and for TensorRT.

        Raises:
            ExportError: An axis that the plan does not know.
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
    """The profiles of every graph of a bundle that gets an engine, in the manifest's order.

    Raises:
        ExportError: A graph that no target knows how to take.
    """
    limits, ranges = manifest.limits, target.ranges
    merge = manifest.preprocessing.get("merge_size", 1)
    patches = int(merge) ** 2 if isinstance(merge, int) else 1
    visual = _within(ranges.visual, limits.visual_tokens)
    text = _within(ranges.text, limits.prompt_tokens)
    keep = _within(ranges.keep, visual[2])
    prompt = _within(ranges.prompt, limits.prompt_tokens)
    cache = _within(ranges.cache, limits.prompt_tokens)
    pictures = ranges.pictures
    known = {
        "vision": [
            Plan(
                "default",
                {
                    "patches": (patches, visual[1] * patches, visual[2] * patches),
                    "borders": (2, pictures[0] + 1, pictures[1] + 1),
                },
            )
        ],
        "compressor": [
            Plan(
                "default",
                {
                    "text": text,
                    "visual": visual,
                    "instruction": text,
                    "prompt": (2, text[1] + visual[1], text[2] + visual[2]),
                    **_kept(manifest.graphs, keep),
                },
                {"keep": keep},
            )
        ],
        "decoder": (_static_plans if target.decoder == "static" else _decoder_plans)(
            prompt, cache, target.decoder_profiles
        ),
    }
    wanted = [role for role in manifest.graphs if role not in LOOKUPS]
    for role in wanted:
        if role not in known:
            raise ExportError(
                f"{role}: no target has profiles for this graph. Upgrade foveate, or export the "
                "checkpoint again with this version."
            )
    return {role: known[role] for role in wanted}


def _decoder_plans(prompt: Sizes, cache: Sizes, count: int) -> list[Plan]:
    """Profiles of the decoder for prompts and steps of one token: apart, or one around both."""
    one, none = (1, 1, 1), (0, 0, 0)
    longer = (cache[0] + 1, cache[1] + 1, cache[2] + 1)
    if count == 2:
        return [
            Plan("prefill", {"batch": one, "sequence": prompt, "past": none, "total": prompt}),
            Plan("decode", {"batch": one, "sequence": one, "past": cache, "total": longer}),
        ]
    return [
        Plan(
            "default",
            {
                "batch": one,
                "sequence": (1, 1, prompt[2]),
                "past": (0, cache[1], cache[2]),
                "total": (1, longer[1], prompt[2] + cache[2]),
            },
        )
    ]


def cache_capacity(manifest: Manifest, target: Target) -> int:
    """Tokens that the cache of a static decoder has room for."""
    return _within(target.ranges.cache, manifest.limits.prompt_tokens)[2]


def _static_plans(prompt: Sizes, cache: Sizes, count: int) -> list[Plan]:
    """Profiles of a decoder whose cache has a fixed length; steps are looked for first."""
    one = (1, 1, 1)
    taken = (1, min(prompt[1], cache[2]), min(prompt[2], cache[2]))
    if count == 2:
        return [
            Plan("decode", {"batch": one, "sequence": one}),
            Plan("prefill", {"batch": one, "sequence": taken}),
        ]
    return [Plan("default", {"batch": one, "sequence": (1, 1, taken[2])})]


def _within(chosen: Range, limit: int) -> Sizes:
    """A target's range from 1, cut to a bundle's limit."""
    return 1, min(chosen[0], limit), min(chosen[1], limit)


def _kept(graphs: Mapping[str, GraphSpec], keep: Sizes) -> dict[str, Sizes]:
    """The axis that is as long as `keep` says, by the name that the compressor gives it."""
    outputs = graphs["compressor"].outputs if "compressor" in graphs else []
    return {str(tensor.shape[0]): keep for tensor in outputs if tensor.name == "kept_indices"}
