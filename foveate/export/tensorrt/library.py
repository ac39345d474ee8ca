"""Finds the TensorRT library of a target, and checks what its version and this machine can build."""

from dataclasses import dataclass
from typing import Any

from foveate.bundle.manifest import Library, Precision, quantized
from foveate.errors import ExportError, MissingDependencyError
from foveate.export.tensorrt.targets import Target, numbers
from foveate.machine import capability
from foveate.runtime.backends.trt.fit import NAMES
from foveate.runtime.backends.trt.library import import_library

QUANTIZED_FROM: dict[Library, tuple[int, ...]] = {"tensorrt": (10,), "tensorrt_rtx": (1,)}
"""The libraries' first versions that take quantized graphs."""
STATIC_FROM: dict[Library, tuple[int, ...]] = {"tensorrt": (10, 15), "tensorrt_rtx": (1, 7)}
"""The libraries' first versions that write caches in place."""
FP8_HINT = ", or build for a target of compute capability 8.9 or later: rtx-40, h100, jetson-thor."


@dataclass(frozen=True, slots=True)
class Builder:
    """An installed library that can build for a target.

    Attributes:
        module: The imported module.
        library: The module's name.
        version: The library's version.
    """

    module: Any
    library: Library
    version: str

    @property
    def title(self) -> str:
        """The library's name and version, for messages."""
        return f"{NAMES[self.library]} {self.version}"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version, to compare by."""
        return numbers(self.version)

    @property
    def is_old(self) -> bool:
        """Whether it is TensorRT before version 10, whose parser misreads newer graphs."""
        return self.library == "tensorrt" and self.numbers < (10,)

    @property
    def chooses_types(self) -> bool:
        """Whether it may compute in other types than a graph says."""
        typed = "STRONGLY_TYPED" in self.module.NetworkDefinitionCreationFlag.__members__
        return not typed and self.numbers < (11,)


def open_builder(
    name: str, target: Target, precision: Precision, wanted: Precision | None = None
) -> tuple[Builder, Precision]:
    """A target's library, checked to build engines of a bundle, and the precision that they compute in.

    Args:
        name: The target's, for messages.
        target: The target.
        precision: The bundle's.
        wanted: The chosen one; None takes the bundle's.

    Raises:
        MissingDependencyError: The library is not installed.
        ExportError: It cannot build for the target, or lacks the precision or the decoder's operators.
    """
    builder = open_library(name, target)
    chosen = engine_precision(name, target, builder, precision, wanted)
    check_decoder(name, target, builder)
    return builder, chosen


def open_library(name: str, target: Target) -> Builder:
    """Import a target's library, and check that it can build for the target on this machine.

    Args:
        name: The target's, for messages.
        target: The target.

    Raises:
        MissingDependencyError: The library is not installed.
        ExportError: It is of another version, or cannot build for the target's GPUs from here.
    """
    try:
        module = import_library(target.library)
    except MissingDependencyError as error:
        raise MissingDependencyError(f"the target {name} cannot be built for: {error}") from error
    builder = Builder(module, target.library, str(module.__version__))
    first, before = target.versions
    if not numbers(first) <= builder.numbers < numbers(before):
        raise ExportError(
            f"the target {name} takes {NAMES[target.library]} {first} to before {before}, and "
            f"{builder.version} is installed. Install one of those: pip install "
            f"'{target.library.replace('_', '-')}>={first},<{before}'"
        )
    if target.library == "tensorrt":
        _check_gpu(name, target)
    else:
        _check_capabilities(name, target, builder)
    return builder


def engine_precision(
    name: str, target: Target, builder: Builder, precision: Precision, wanted: Precision | None
) -> Precision:
    """The precision that engines compute in: the bundle's, or the chosen one where there is a choice.

    Args:
        name: The target's, for messages.
        target: The target.
        builder: The library.
        precision: The bundle's.
        wanted: The chosen one; None takes the bundle's.

    Raises:
        ExportError: The target or the library does not have it.
    """
    check_precision(name, target, builder, precision)
    if wanted is None or wanted == precision:
        return precision
    if builder.chooses_types and (precision, wanted) == ("fp32", "fp16"):
        return wanted
    raise ExportError(
        f"{builder.title} computes in the types of the graphs, which are {precision}. Export the "
        f"checkpoint again with --precision {wanted}; --precision fp16 turns fp32 graphs into fp16 "
        "engines with TensorRT before version 10 alone."
    )


def check_precision(name: str, target: Target, builder: Builder, precision: Precision) -> None:
    """ExportError for a bundle whose precision the target or the library does not have."""
    if precision not in target.precisions:
        raise ExportError(
            f"the target {name} takes bundles in {', '.join(target.precisions)}, not in {precision}. "
            f"Export the checkpoint again with --precision {' or '.join(target.precisions)}"
            + (FP8_HINT if precision == "fp8" else ".")
        )
    if quantized(precision) and builder.numbers < QUANTIZED_FROM[target.library]:
        raise ExportError(
            f"{builder.title} does not take {precision} graphs as foveate writes them; install "
            "version 10 or later, or export with --precision fp32."
        )
    if precision != "fp32" and builder.chooses_types:
        raise ExportError(
            f"{builder.title} may compute in other types than the graph says, so it takes fp32 alone. "
            "Export with --precision fp32, or install version 10."
        )


def check_decoder(name: str, target: Target, builder: Builder) -> None:
    """ExportError for a decoder graph whose operators the library does not have."""
    first = STATIC_FROM[target.library]
    if target.decoder == "static" and builder.numbers < first:
        least = ".".join(map(str, first))
        raise ExportError(
            f"{builder.title} cannot write a cache in place, as the static decoder of the target "
            f"{name} does: that came with {least}. Build with --decoder concat, or install {least} or "
            "later."
        )


def _check_gpu(name: str, target: Target) -> None:
    """ExportError for plain TensorRT, which builds for the GPU it runs on, where the target is another."""
    wanted, here = ", ".join(target.compute_capabilities), capability()
    if here not in target.compute_capabilities:
        found = f"the one here has compute capability {here}" if here else "there is none here"
        raise ExportError(
            f"TensorRT builds only for the GPU it runs on, and {found}; the target "
            f"{name} is {target.gpu} ({wanted}). Copy the bundle to such a machine and run foveate "
            "build there."
        )


def _check_capabilities(name: str, target: Target, builder: Builder) -> None:
    """ExportError for a compute capability that TensorRT for RTX cannot build for."""
    known = [
        f"{member[2:-1]}.{member[-1]}"
        for member in builder.module.ComputeCapability.__members__
        if member.startswith("SM")
    ]
    lacking = [one for one in target.compute_capabilities if one not in known]
    if lacking:
        raise ExportError(
            f"{builder.title} does not build for compute capability "
            f"{', '.join(lacking)}, which the target {name} needs; it builds for "
            f"{', '.join(known)}. Change compute_capabilities in a file given with --targets."
        )
