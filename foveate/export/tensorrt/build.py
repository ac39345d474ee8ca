"""What `foveate build` does: a bundle's graphs to the engines of one or more targets."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec.structs import replace

from foveate.atomic_write import writing
from foveate.bundle.engine_writer import EngineWriter
from foveate.bundle.manifest import Decoder, Digest, EngineVariant, GraphSpec, Operators, Precision
from foveate.bundle.onnx_file import external_data
from foveate.bundle.reader import Bundle
from foveate.errors import ExportError, TargetError
from foveate.export.tensorrt.builder import build_engine
from foveate.export.tensorrt.library import Builder, check_decoder, engine_precision, open_library
from foveate.export.tensorrt.profiles import LOOKUPS, Plan, cache_capacity, plan_profiles
from foveate.export.tensorrt.targets import Target, choose_target, read_targets
from foveate.runtime.backends.trt.fit import NAMES
from foveate.terminal import duration, size, table

Progress = Callable[[str, int, int], None]
"""Called as each engine is begun: its name, its number from 1, how many there are."""


@dataclass(frozen=True, slots=True)
class Built:
    """One engine that was built.

    Attributes:
        engine: What the manifest says of it.
        bytes: Its size.
        seconds: How long it took.
    """

    engine: EngineVariant
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Job:
    """One target, looked at and ready to be built for."""

    name: str
    target: Target
    builder: Builder
    precision: Precision
    plans: dict[str, list[Plan]]


@dataclass(frozen=True, slots=True)
class Result:
    """What was built.

    Attributes:
        bundle: The bundle as it is now.
        targets: The targets, by name.
        built: The engines, in the order they were built in.
    """

    bundle: Bundle
    targets: dict[str, Target]
    built: list[Built]


def build_engines(
    path: Path,
    names: Sequence[str],
    targets_file: Path | None = None,
    *,
    precision: Precision | None = None,
    decoder: Decoder | None = None,
    force: bool = False,
    progress: Progress = lambda stage, number, total: None,
    say: Callable[[str], None] = lambda detail: None,
) -> Result:
    """Build the engines of a bundle for targets, each target's put in place when all are there.

    Args:
        path: The bundle's folder.
        names: The targets.
        targets_file: TOML that changes or adds targets.
        precision: "fp16" for fp16 engines of fp32 graphs, with TensorRT before version 10; None takes
            the bundle's.
        decoder: The decoder graph, in place of the one that each target takes.
        force: Replace engines that the bundle already has for these targets.
        progress: Told as each engine is begun.
        say: Told what TensorRT is at.

    Raises:
        TargetError: A target that is unknown or badly described.
        BundleError: No bundle, or one that cannot be trusted.
        MissingDependencyError: The library that a target asks for is not installed.
        ExportError: The graphs are fused for onnxruntime, an engine cannot be built, or would not compute what its graph does.
        OutputExistsError: The bundle has engines for a target, and `force` was not given.
        OutputError: They could not be written.
    """
    if not names:
        raise TargetError("no target was given; name one with --target")
    targets = read_targets(targets_file)
    chosen = {name: _choose(targets, name, decoder) for name in names}
    progress("checksums", 0, 0)
    bundle = Bundle.open(path)
    _check_operators(bundle.root, bundle.manifest.operators)
    jobs = [_prepare(bundle, name, target, precision, force) for name, target in chosen.items()]
    total, number, built = sum(len(job.plans) for job in jobs), 0, []
    for job in jobs:
        with EngineWriter(bundle, job.name, force=force) as writer, writing(bundle.root):
            files: dict[str, Path] = {}
            made: list[Built] = []
            cache = f"timing.{job.name}"
            timing = bundle.file(cache).read_bytes() if cache in bundle.manifest.files else b""
            for role, plans in job.plans.items():
                number += 1
                progress(f"{job.name} {role}", number, total)
                began = time.perf_counter()
                kind = job.target.decoder if role == "decoder" else None
                capacity = cache_capacity(bundle.manifest, job.target) if kind == "static" else None
                engine, profiles, timing = build_engine(
                    job.builder, job.target, bundle.file(role), role, bundle.graph(role), plans, say,
                    timing, job.precision, capacity,
                )  # fmt: skip
                entry = f"engine.{job.name}.{role}"
                files[entry] = writer.root / f"{role}.engine"
                with open(files[entry], "xb") as file:
                    count = file.write(memoryview(engine))
                del engine
                variant = EngineVariant(
                    target=job.name,
                    role=role,
                    file=entry,
                    library=job.builder.library,
                    version=job.builder.version,
                    compute_capabilities=job.target.compute_capabilities,
                    precision=job.precision,
                    decoder=kind,
                    profiles=profiles,
                    built_from=_sources(bundle, role),
                )
                made.append(Built(variant, count, time.perf_counter() - began))
            if timing:
                files[cache] = writer.root / "timing.cache"
                files[cache].write_bytes(timing)
            bundle = writer.finish([one.engine for one in made], files)
        built += made
    return Result(bundle, chosen, built)


def check_targets(
    root: Path,
    names: Sequence[str],
    precision: Precision,
    operators: Operators,
    decoder: Decoder | None = None,
) -> None:
    """Refuse, before a checkpoint is exported, targets that its bundle could not be built for here.

    Args:
        root: The bundle's folder, for messages.
        names: The targets.
        precision: What the bundle is to compute in.
        operators: What its graphs are to be made of.
        decoder: The decoder graph, in place of the one that each target takes.

    Raises:
        TargetError: A target that is unknown.
        MissingDependencyError: The library that a target asks for is not installed.
        ExportError: A target takes no such bundle, or cannot be built for here.
    """
    _check_operators(root, operators)
    targets = read_targets(None)
    for name in names:
        target = _choose(targets, name, decoder)
        builder = open_library(name, target)
        engine_precision(name, target, builder, precision, None)
        check_decoder(name, target, builder)


def _choose(targets: Mapping[str, Target], name: str, decoder: Decoder | None) -> Target:
    """A target by its name, with another decoder graph where one was asked for."""
    target = choose_target(targets, name)
    return target if decoder is None else replace(target, decoder=decoder)


def _check_operators(root: Path, operators: Operators) -> None:
    """ExportError for graphs of operators that TensorRT does not have."""
    if operators != "standard":
        raise ExportError(
            f"{root}: its graphs are fused for {operators}, with operators that TensorRT does not have. "
            "Export the checkpoint again with --operators standard."
        )


def _prepare(
    bundle: Bundle, name: str, target: Target, wanted: Precision | None, force: bool
) -> Job:
    """Find out all that can be before anything is built."""
    EngineWriter(bundle, name, force=force).check_existing()
    builder = open_library(name, target)
    precision = engine_precision(name, target, builder, bundle.manifest.precision, wanted)
    check_decoder(name, target, builder)
    return Job(name, target, builder, precision, plan_profiles(bundle.manifest, target))


def _sources(bundle: Bundle, role: str) -> dict[str, Digest]:
    """The SHA-256 of a graph and of its weights, by role."""
    files = bundle.manifest.files
    folder = PurePosixPath(files[role].path).parent
    paths = {str(folder / location) for location in external_data(bundle.file(role))}
    weights = {other: entry.sha256 for other, entry in files.items() if entry.path in paths}
    return {role: files[role].sha256, **weights}


def build_facts(result: Result) -> dict[str, Any]:
    """What `foveate build --json` says."""
    return {
        "root": str(result.bundle.root),
        "workspace_mib": {name: one.workspace_mib for name, one in result.targets.items()},
        "engines": [
            {
                "target": one.engine.target,
                "role": one.engine.role,
                "file": result.bundle.manifest.files[one.engine.file].path,
                "library": one.engine.library,
                "version": one.engine.version,
                "compute_capabilities": one.engine.compute_capabilities,
                "precision": one.engine.precision,
                "decoder": one.engine.decoder,
                "bytes": one.bytes,
                "seconds": round(one.seconds, 3),
            }
            for one in result.built
        ],
        "left_out": left_out(result.bundle.manifest.graphs),
    }


def describe_build(result: Result) -> str:
    """What `foveate build` says when it is done."""
    lines = [str(result.bundle.root)]
    for name, target in result.targets.items():
        engines = [one for one in result.built if one.engine.target == name]
        first = engines[0].engine
        lines += [
            f"{name}: {NAMES[first.library]} {first.version}, {first.precision}, for compute "
            f"capability {', '.join(first.compute_capabilities)}; layers may use up to "
            f"{target.workspace_mib} MiB of workspace",
            table((_kind(one.engine), size(one.bytes), duration(one.seconds)) for one in engines),
        ]
    for role in left_out(result.bundle.manifest.graphs):
        lines.append(f"{role} has no engine: looking rows up needs none")
    return "\n".join(lines)


def _kind(engine: EngineVariant) -> str:
    """An engine's graph, and which decoder it is."""
    return f"{engine.role} ({engine.decoder})" if engine.decoder else engine.role


def left_out(graphs: dict[str, GraphSpec]) -> list[str]:
    """The graphs that get no engine."""
    return [role for role in graphs if role in LOOKUPS]
