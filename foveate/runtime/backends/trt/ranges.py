"""Which of an engine's profiles takes a request's shapes; LimitError where none does."""

from collections.abc import Iterator, Mapping, Sequence

from foveate.bundle.manifest import EngineVariant, Profile, Span
from foveate.errors import LimitError

Shapes = Mapping[str, Sequence[int]]


def pick_profile(engine: EngineVariant, shapes: Shapes, values: Shapes) -> int:
    """The number of the first profile that takes these inputs.

    Args:
        engine: What the manifest says of the engine.
        shapes: The shape of every input.
        values: What the inputs that are sizes themselves hold.

    Raises:
        LimitError: None does; it names the input, its shape and the range of the nearest profile.
    """
    nearest: list[str] = []
    for place, profile in enumerate(engine.profiles.values()):
        faults = list(_faults(profile, shapes, values))
        if not faults:
            return place
        if not nearest or len(faults) <= len(nearest):
            nearest = faults
    raise LimitError(
        f"{engine.role}: {nearest[0]} the engine for {engine.target} takes. Use fewer or smaller "
        "pictures, a lower keep or a shorter answer, or build engines with larger ranges: foveate "
        f"build --target {engine.target} --targets FILE --force"
    )


def largest(engine: EngineVariant, name: str, axis: int) -> int:
    """The largest size that any profile takes on an axis of an input."""
    return max(profile.shapes[name][2][axis] for profile in engine.profiles.values())


def only_sizes(engine: EngineVariant, name: str) -> list[int | None] | None:
    """For each axis of an input the one size that its profiles take, or None; None for no such input."""
    spans = [profile.shapes[name] for profile in engine.profiles.values() if name in profile.shapes]
    if not spans:
        return None
    return [
        next(iter(sizes)) if len(sizes := {size for part in axis for size in part}) == 1 else None
        for axis in zip(*(zip(*span, strict=True) for span in spans), strict=True)
    ]


def _faults(profile: Profile, shapes: Shapes, values: Shapes) -> Iterator[str]:
    """Which inputs a profile does not take, and why, as the beginnings of sentences."""
    for found, ranges, what in ((shapes, profile.shapes, "is"), (values, profile.values, "holds")):
        for name, sizes in found.items():
            if name in ranges and not _within(sizes, ranges[name]):
                low, _, most = ranges[name]
                yield f"the input {name!r} {what} {list(sizes)}, outside the {low} to {most} that"


def _within(sizes: Sequence[int], span: Span) -> bool:
    """Whether sizes lie in a range."""
    low, _, most = span
    return len(sizes) == len(low) and all(
        a <= size <= b for a, size, b in zip(low, sizes, most, strict=True)
    )
