"""Targets: the GPUs, library versions and sizes that TensorRT engines are built for."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from foveate.bundle import manifest as schema
from foveate.bundle.manifest import Count, Record, Text, short
from foveate.errors import MissingDependencyError, TargetError

BUILTIN = Path(__file__).with_name("targets.toml")
TOML_LIMIT = 1024 * 1024
FP8_FROM = (8, 9)

Range = tuple[Count, Count]
"""The size that engines are tuned for, and the largest that they accept."""


class Ranges(Record, frozen=True, kw_only=True):
    """The sizes of a request; where a bundle's limits are lower, those hold.

    Attributes:
        visual: Visual tokens before compression.
        picture: Those of one run of the vision graph; None is as `visual`.
        pictures: Pictures of one request.
        text: Text tokens of a prompt.
        keep: Visual tokens kept.
        prompt: Tokens of a prompt after compression.
        cache: Tokens of a whole sequence: the prompt and the answer.
    """

    visual: Range
    pictures: Range
    text: Range
    keep: Range
    prompt: Range
    cache: Range
    picture: Range | None = None


class Target(Record, frozen=True, kw_only=True):
    """One target.

    Attributes:
        gpu: Names of its GPUs, for messages.
        compute_capabilities: Those of its GPUs.
        library: The library that builds and runs its engines.
        versions: The library's versions: from the first up to, but not including, the second.
        precisions: The precisions that its bundles may have.
        decoder: The decoder graph: "concat", whose KV cache grows by concatenation; or "static", whose cache
            has the largest length of `ranges.cache` and is written in place, with TensorRT from 10.15 on
            or TensorRT for RTX.
        decoder_profiles: 2 for one optimization profile for prefill and one for decode steps; 1 for one
            profile that covers both.
        workspace_mib: MiB of GPU memory that a layer may use, while an engine is built and when it runs.
        optimization_level: How long TensorRT searches for kernels, 0 to 5; None is TensorRT's default.
        ranges: The sizes that engines are built for.
    """

    gpu: Text
    compute_capabilities: Annotated[list[schema.Capability], msgspec.Meta(min_length=1)]
    library: schema.Library
    versions: tuple[schema.Release, schema.Release]
    precisions: Annotated[list[schema.Precision], msgspec.Meta(min_length=1)]
    decoder: schema.Decoder
    decoder_profiles: Literal[1, 2]
    workspace_mib: Count
    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    ranges: Ranges


def read_targets(path: Path | None = None) -> dict[str, Target]:
    """The built-in targets, with the changes and additions of a file.

    Args:
        path: TOML with a table for each target: the changed keys of a known one, or all keys of a new one.

    Raises:
        TargetError: The file cannot be read, or describes no target.
        MissingDependencyError: Python 3.10 without tomli.
    """
    source = path or BUILTIN
    try:
        tables = _merged(_tables(BUILTIN), _tables(path) if path else {})
        targets = msgspec.convert(tables, dict[schema.Role, Target])
    except msgspec.ValidationError as error:
        raise TargetError(
            f"{source}: {short(error)}. A new target needs all the keys of {BUILTIN}, a known one "
            "those that change."
        ) from None
    for name, target in targets.items():
        if problem := _problem(target):
            raise TargetError(f"{source}: the target {name!r}: {problem}.")
    return targets


def choose_target(targets: Mapping[str, Target], name: str) -> Target:
    """A target by its name.

    Raises:
        TargetError: There is none of that name.
    """
    if name not in targets:
        raise TargetError(
            f"the target {short(name)!r} is unknown; choose from {', '.join(targets)}, or describe "
            "it in a file and give that with --targets"
        )
    return targets[name]


def _tables(path: Path) -> dict[str, Any]:
    """A TOML file as plain Python: a table for each target."""
    try:
        with open(path, "rb") as file:
            data = file.read(TOML_LIMIT + 1)
        document = msgspec.toml.decode(data)
    except ImportError as error:
        raise MissingDependencyError(
            "reading targets needs tomli on Python 3.10: pip install tomli"
        ) from error
    except OSError as error:
        raise TargetError(
            f"{path} cannot be read: {error.strerror or error}. Check the path and its permissions."
        ) from error
    except ValueError as error:
        raise TargetError(f"{path} is not valid TOML: {short(error)}. Correct it there.") from None
    if len(data) > TOML_LIMIT or not all(isinstance(table, dict) for table in document.values()):
        raise TargetError(
            f"{path} must hold a table for each target and no more, as {BUILTIN} does."
        )
    return document  # type: ignore[no-any-return]


def _merged(known: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested tables with the values of `changes` in place of their own."""
    merged = dict(known)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(known.get(key), dict)
        merged[key] = _merged(known[key], value) if both else value
    return merged


def _problem(target: Target) -> str | None:
    """What is wrong with a target, beyond what its types refuse; None if nothing is."""
    for name, range_ in msgspec.structs.asdict(target.ranges).items():
        best, most = range_ or (1, 1)
        if best > most:
            return f"ranges.{name} is tuned for {best}, more than the {most} it accepts; swap them"
    if numbers(target.versions[0]) >= numbers(target.versions[1]):
        return f"versions {' to before '.join(target.versions)} are none; the first must be lower"
    old = [one for one in target.compute_capabilities if numbers(one) < FP8_FROM]
    if "fp8" in target.precisions and old:
        return f"compute capability {', '.join(old)} has no fp8, which came with 8.9; take one out"
    return None


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare by: "10.3.0.post1" is (10, 3, 0)."""
    return tuple(map(int, itertools.takewhile(str.isdigit, version.split("."))))
