"""The TensorRT libraries: which one a target asks for, and whether what is installed will do."""

import importlib
from dataclasses import dataclass
from typing import Any, get_args

from foveate.bundle.manifest import Library, Precision, Quantized
from foveate.errors import ExportError, MissingDependencyError
from foveate.export.tensorrt.targets import Target, release
from foveate.machine import capability
from foveate.runtime.backends.trt.fit import NAMES

QUANTIZED_FROM: dict[Library, tuple[int, ...]] = {"tensorrt": (10,), "tensorrt_rtx": (1,)}
STATIC_FROM: dict[Library, tuple[int, ...]] = {"tensorrt": (10, 15), "tensorrt_rtx": (1, 7)}
"""The libraries' first versions that write caches in place."""
FP8_HINT = ", or build for a target of compute capability 8.9 or later: rtx-40, h100, jetson-thor."
EXTRAS: dict[Library, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}


@dataclass(frozen=True, slots=True)
class Builder:
    """An installed library that can build for a target.

    Attributes:
        module: It.
        library: Its name in Python.
        version: Its version.
    """

    module: Any
    library: Library
    version: str


def open_library(name: str, target: Target) -> Builder:
    """Import the library that a target asks for and see whether it can build for it here.

    Args:
        name: The target's, for messages.
        target: The target.

    Raises:
        MissingDependencyError: The library is not installed.
        ExportError: It is of another version, or cannot build for the target's GPUs from here.
    """
    title = NAMES[target.library]
    try:
        module = importlib.import_module(target.library)
        version = str(module.__version__)
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise MissingDependencyError(
            f"the target {name} needs {title}, which cannot be imported ({error}): "
            f"pip install 'foveate[{EXTRAS[target.library]}]'"
            + ("; on a Jetson it comes with JetPack" if target.library == "tensorrt" else "")
        ) from error
    first, before = target.versions
    if not release(first) <= numbers(version) < release(before):
        raise ExportError(
            f"the target {name} takes {title} {first} to before {before}, and {version} is "
            f"installed. Install one of those: pip install '{target.library.replace('_', '-')}"
            f">={first},<{before}'"
        )
    if target.library == "tensorrt":
        _check_gpu(name, target)
    else:
        _check_capabilities(name, target, module, version)
    return Builder(module, target.library, version)


def engine_precision(
    name: str, target: Target, builder: Builder, precision: Precision, wanted: Precision | None
) -> Precision:
    """What engines compute in: the bundle's precision, or the one asked for where it can be chosen.

    Args:
        name: The target's, for messages.
        target: The target.
        builder: The library.
        precision: The bundle's.
        wanted: What was asked for; None takes the bundle's.

    Raises:
        ExportError: The target or the library does not have it.
    """
    check_precision(name, target, builder, precision)
    if wanted is None or wanted == precision:
        return precision
    if chooses_types(builder) and (precision, wanted) == ("fp32", "fp16"):
        return wanted
    raise ExportError(
        f"{NAMES[builder.library]} {builder.version} computes in the types of the graphs, which are "
        f"{precision}. Export the checkpoint again with --precision {wanted}; --precision fp16 turns "
        "fp32 graphs into fp16 engines with TensorRT before version 10 alone."
    )


def check_decoder(name: str, target: Target, builder: Builder) -> None:
    """ExportError for a decoder graph that the library does not have the operators of."""
    first = STATIC_FROM[target.library]
    if target.decoder == "static" and numbers(builder.version) < first:
        least = ".".join(map(str, first))
        raise ExportError(
            f"{NAMES[builder.library]} {builder.version} cannot write a cache in place, as the static "
            f"decoder asked for with the target {name} does: that came with {least}. Build with "
            f"--decoder concat, or install {least} or later."
        )


def chooses_types(builder: Builder) -> bool:
    """Whether a library may compute in other types than a graph says."""
    typed = "STRONGLY_TYPED" in builder.module.NetworkDefinitionCreationFlag.__members__
    return not typed and numbers(builder.version) < (11,)


def is_old(builder: Builder) -> bool:
    """Whether it is TensorRT before version 10, whose parser misreads newer graphs."""
    return builder.library == "tensorrt" and numbers(builder.version) < (10,)


def check_precision(name: str, target: Target, builder: Builder, precision: Precision) -> None:
    """ExportError for a bundle whose precision the target or the library does not have."""
    if precision not in target.precisions:
        raise ExportError(
            f"the target {name} takes bundles in {', '.join(target.precisions)}, not in {precision}. "
            f"Export the checkpoint again with --precision {' or '.join(target.precisions)}"
            + (FP8_HINT if precision == "fp8" else ".")
        )
    if (
        precision in get_args(Quantized)
        and numbers(builder.version) < QUANTIZED_FROM[target.library]
    ):
        raise ExportError(
            f"{NAMES[builder.library]} {builder.version} does not take {precision} graphs as foveate "
            "writes them; install version 10 or later, or export with --precision fp32."
        )
    if precision != "fp32" and chooses_types(builder):
        raise ExportError(
            f"{NAMES[builder.library]} {builder.version} may compute in other types than the graph "
            f"says, so it takes fp32 alone. Export with --precision fp32, or install version 10."
        )


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a library's version: "10.3.0.post1" is (10, 3, 0)."""
    found = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def _check_gpu(name: str, target: Target) -> None:
    """ExportError where plain TensorRT, which builds for the GPU it runs on, has another or none."""
    wanted, here = ", ".join(target.compute_capabilities), capability()
    if here not in target.compute_capabilities:
        found = f"has compute capability {here}" if here else "is not to be seen"
        raise ExportError(
            f"TensorRT builds only for the GPU it runs on, and the one here {found}; the target "
            f"{name} is {target.gpu} ({wanted}). Copy the bundle to such a machine and run foveate "
            "build there."
        )


def _check_capabilities(name: str, target: Target, module: Any, version: str) -> None:
    """ExportError for a compute capability that TensorRT for RTX cannot build for."""
    known = [
        f"{member[2:-1]}.{member[-1]}"
        for member in module.ComputeCapability.__members__
        if member.startswith("SM")
    ]
    lacking = [one for one in target.compute_capabilities if one not in known]
    if lacking:
        raise ExportError(
            f"TensorRT for RTX {version} does not build for compute capability "
            f"{', '.join(lacking)}, which the target {name} asks for; it builds for "
            f"{', '.join(known)}. Change compute_capabilities in a file given with --targets."
        )
