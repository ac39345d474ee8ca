"""Builds the engines of a bundle's graphs for one or more targets."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec.structs import replace

from foveate.atomic_write import writing
from foveate.bundle.engine_writer import EngineWriter
from foveate.bundle.manifest import Decoder, Digest, EngineVariant, Operators, Precision
from foveate.bundle.onnx_file import external_data
from foveate.bundle.reader import Bundle
from foveate.errors import ExportError, TargetError
from foveate.export.tensorrt.builder import Job, build_engine
from foveate.export.tensorrt.library import open_builder
from foveate.export.tensorrt.profiles import cache_capacity, plan_profiles
from foveate.export.tensorrt.targets import Target, choose_target, read_targets
from foveate.runtime.backends.trt.fit import NAMES
from foveate.terminal import duration, size, table

SHOWN = ["target", "role", "library", "version", "compute_capabilities", "precision", "decoder"]
"""What is shown of an engine's entry in the manifest."""
Progress = Callable[[str, int, int], None]
"""Called as each engine is begun, with its name, its number from 1 and how many there are."""


@dataclass(frozen=True, slots=True)
class Built:
    """One engine that was built.

    Attributes:
        engine: Its entry in the manifest.
        bytes: Its size.
        seconds: How long it took to build.
    """

    engine: EngineVariant
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """The engines that were built.

    Attributes:
        bundle: The bundle with them.
        targets: The targets, by name.
        built: The engines, in the order they were built in.
    """

    bundle: Bundle
    targets: dict[str, Target]
    built: list[Built]


def build_engines(
    bundle: Bundle | Path,
    names: Sequence[str],
    targets_file: Path | None = None,
    *,
    precision: Precision | None = None,
    decoder: Decoder | None = None,
    force: bool = False,
    progress: Progress = lambda stage, number, total: None,
    say: Callable[[str], None] = lambda detail: None,
) -> Result:
    """Build the engines of a bundle for targets; a target's engines are added once all of them are built.

    Args:
        bundle: Opened, its checksums checked; or its folder.
        names: The targets.
        targets_file: TOML that changes or adds targets.
        precision: "fp16" for fp16 engines of fp32 graphs, with TensorRT before version 10; None takes
            the bundle's.
        decoder: The decoder graph, in place of each target's own.
        force: Replace engines that the bundle already has for these targets.
        progress: Called as each engine is begun.
        say: Called with the phase that TensorRT is in.

    Raises:
        TargetError: A target that is unknown or badly described.
        BundleError: No bundle, or one that cannot be trusted.
        MissingDependencyError: A target's library is not installed.
        ExportError: The graphs have contrib operators, an engine cannot be built, or it would not compute
            what its graph does.
        OutputExistsError: The bundle has engines for a target, and `force` was not given.
        OutputError: They could not be written.
    """
    if not names:
        raise TargetError("no target was given; name one with --target")
    chosen = _choose(names, targets_file, decoder)
    if isinstance(bundle, Path):
        progress("checksums", 0, 0)
        bundle = Bundle.open(bundle)
    _check_operators(bundle.root, bundle.manifest.operators)
    jobs = [_prepare(bundle, name, target, precision, force) for name, target in chosen.items()]
    total, numbers, built = sum(len(job.plans) for job in jobs), itertools.count(1), []
    for job in jobs:
        bundle, made = _build_job(
            bundle, job, force, lambda stage: progress(stage, next(numbers), total), say
        )
        built += made
    return Result(bundle, chosen, built)


def _build_job(
    bundle: Bundle, job: Job, force: bool, begin: Callable[[str], None], say: Callable[[str], None]
) -> tuple[Bundle, list[Built]]:
    """Build the engines of one target and add them to the bundle."""
    files: dict[str, Path] = {}
    built: list[Built] = []
    cache = f"timing.{job.name}"
    timing = bundle.file(cache).read_bytes() if cache in bundle.manifest.files else b""
    with EngineWriter(bundle, job.name, force=force) as writer, writing(bundle.root):
        for role in job.plans:
            begin(f"{job.name} {role}")
            began = time.perf_counter()
            engine, profiles, timing = build_engine(
                job, role, bundle.file(role), bundle.graph(role), say, timing
            )
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
                decoder=job.target.decoder if role == "decoder" else None,
                profiles=profiles,
                built_from=_sources(bundle, role),
            )
            built.append(Built(variant, count, time.perf_counter() - began))
        if timing:
            files[cache] = writer.root / "timing.cache"
            files[cache].write_bytes(timing)
        return writer.finish([one.engine for one in built], files), built


def check_targets(
    root: Path,
    names: Sequence[str],
    precision: Precision,
    operators: Operators,
    decoder: Decoder | None = None,
) -> None:
    """Refuse, before a checkpoint is exported, targets whose engines could not be built here.

    Args:
        root: The bundle's folder, for messages.
        names: The targets.
        precision: The precision that the bundle will have.
        operators: The operators that its graphs will have.
        decoder: The decoder graph, in place of each target's own.

    Raises:
        TargetError: A target that is unknown.
        MissingDependencyError: A target's library is not installed.
        ExportError: A target takes no such bundle, or its engines cannot be built on this machine.
    """
    _check_operators(root, operators)
    for name, target in _choose(names, None, decoder).items():
        open_builder(name, target, precision)


def _choose(
    names: Sequence[str], targets_file: Path | None, decoder: Decoder | None
) -> dict[str, Target]:
    """Targets by their names, with another decoder graph where one is given."""
    targets = read_targets(targets_file)
    chosen = {name: choose_target(targets, name) for name in names}
    return {
        name: replace(target, decoder=decoder or target.decoder) for name, target in chosen.items()
    }


def _check_operators(root: Path, operators: Operators) -> None:
    """ExportError for graphs with contrib operators, which TensorRT does not have."""
    if operators != "standard":
        raise ExportError(
            f"{root}: its graphs have contrib operators of onnxruntime, which TensorRT does not have. "
            "Export the checkpoint again with --operators standard."
        )


def _prepare(
    bundle: Bundle, name: str, target: Target, wanted: Precision | None, force: bool
) -> Job:
    """Check a target and plan its profiles; whatever can be refused is, before anything is built."""
    EngineWriter(bundle, name, force=force).check_existing()
    builder, precision = open_builder(name, target, bundle.manifest.precision, wanted)
    plans = plan_profiles(bundle.manifest, target)
    capacity = cache_capacity(bundle.manifest, target) if target.decoder == "static" else None
    return Job(name, target, builder, precision, plans, capacity)


def _sources(bundle: Bundle, role: str) -> dict[str, Digest]:
    """The SHA-256 of a graph and of its weights, by their roles in the manifest."""
    files = bundle.manifest.files
    folder = PurePosixPath(files[role].path).parent
    paths = {str(folder / location) for location in external_data(bundle.file(role))}
    weights = {other: entry.sha256 for other, entry in files.items() if entry.path in paths}
    return {role: files[role].sha256, **weights}


def build_facts(result: Result) -> dict[str, Any]:
    """The result of `foveate build --json`."""
    return {
        "root": str(result.bundle.root),
        "workspace_mib": {name: one.workspace_mib for name, one in result.targets.items()},
        "engines": [
            {
                **{name: getattr(one.engine, name) for name in SHOWN},
                "file": result.bundle.manifest.files[one.engine.file].path,
                "bytes": one.bytes,
                "seconds": round(one.seconds, 3),
            }
            for one in result.built
        ],
    }


def describe_build(result: Result) -> str:
    """The result of `foveate build` in words."""
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
    return "\n".join(lines)


def _kind(engine: EngineVariant) -> str:
    """An engine's role, and for a decoder its kind of cache."""
    return f"{engine.role} ({engine.decoder})" if engine.decoder else engine.role
