"""Builds one serialized TensorRT engine of one ONNX graph."""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.bundle.manifest import GraphSpec, Precision, Profile
from foveate.errors import ExportError
from foveate.export.tensorrt.any_size import has_limits, without_limits
from foveate.export.tensorrt.checks import check_cache, check_network
from foveate.export.tensorrt.library import Builder
from foveate.export.tensorrt.mixed import set_precisions
from foveate.export.tensorrt.network import inputs_of
from foveate.export.tensorrt.opset17 import to_opset17
from foveate.export.tensorrt.profiles import Plan
from foveate.export.tensorrt.static import static_graph
from foveate.export.tensorrt.targets import Target
from foveate.runtime.backends.trt.tensor_specs import static_spec

MIB = 1024 * 1024
ERROR, WARNING = 1, 2
EXTERNAL_TACTICS = ("CUBLAS", "CUBLAS_LT", "CUDNN")
"""Kernels of libraries that the slim runtime does not install."""
FLOAT_ROLES = ("compressor",)
"""Graphs that compute in float32 whatever a bundle's precision."""
IMPOSSIBLE = "not self-consistent"
"""Part of TensorRT's warning, no error, for a profile whose shapes the network cannot have."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the engines of one target are built for and with.

    Attributes:
        name: The target's name.
        target: The target.
        builder: The library.
        precision: What float32 graphs are computed in where TensorRT chooses types itself.
        plans: The profiles of each graph, in order.
        capacity: Tokens that the cache of a static decoder has room for; None for one whose cache grows.
    """

    name: str
    target: Target
    builder: Builder
    precision: Precision
    plans: dict[str, list[Plan]]
    capacity: int | None = None


@dataclass(slots=True)
class BuildLog:
    """The last errors and warnings of TensorRT, and its warnings of impossible profiles."""

    errors: deque[str] = field(default_factory=lambda: deque(maxlen=5))
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=2))
    impossible: list[str] = field(default_factory=list)

    def add(self, severity: int, text: str) -> None:
        """Keep a line that matters; severity 0 is an internal error, 1 an error, 2 a warning."""
        if severity <= ERROR:
            self.errors.append(text)
        elif IMPOSSIBLE in text:
            self.impossible.append(text)
        elif severity == WARNING:
            self.warnings.append(text)

    def last(self) -> str:
        """The errors in one line; the warnings where there are no errors."""
        return " | ".join(self.errors or self.warnings) or "no reason"


def build_engine(
    job: Job,
    role: str,
    graph: Path,
    spec: GraphSpec,
    say: Callable[[str], None],
    timing: bytes = b"",
) -> tuple[Any, dict[str, Profile], bytes]:
    """Build the engine of one graph.

    Args:
        job: What to build for and with.
        role: The graph's role.
        graph: The ONNX file.
        spec: The graph's inputs and outputs in the manifest.
        say: Called with the phase that TensorRT is in, from any thread.
        timing: A timing cache of plain TensorRT; empty for none.

    Returns:
        The serialized engine, as a buffer; the profiles; the timing cache, empty where there is none.

    Raises:
        ExportError: TensorRT cannot build it, or would build something else; with TensorRT's own words.
    """
    builder, plans, log = job.builder, job.plans[role], BuildLog()
    trt, capacity = builder.module, job.capacity if role == "decoder" else None
    try:
        logger = _logger(trt, log)
        maker = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        raise ExportError(
            f"{builder.title} cannot start: {log.last()} ({error}). Check the machine: foveate doctor"
        ) from error
    # TensorRT 8 has explicit batch, 9 and 10 have strong types, and version 11 has neither flag.
    flags = _bits(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", "STRONGLY_TYPED")
    network = maker.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if capacity is not None:
        spec = static_spec(spec, capacity)
    most = max(size for plan in plans for size in plan.sizes(2).values())
    try:
        parsed = _parse(parser, graph, builder.is_old, capacity, most)
    except ExportError as error:
        raise ExportError(f"{role}: {error}") from None
    if not parsed:
        faults = [parser.get_error(place) for place in range(parser.num_errors)]
        reason = "; ".join(str(fault.desc()) for fault in faults) or log.last()
        raise ExportError(
            f"{role}: {builder.title} cannot take the graph: {reason}. Export the checkpoint again "
            "with this version of foveate, or install a later library."
        )
    profiles = {plan.name: plan.ranges(spec, role) for plan in plans}
    check_network(trt, network, role, spec)
    if capacity is not None:
        check_cache(trt, network, role, spec)

    config = _config(job, maker)
    if builder.is_old and job.precision == "fp16" and role not in FLOAT_ROLES:
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        set_precisions(trt, network)
    for profile in profiles.values():
        _add_profile(maker, config, network, role, profile)
    timed = builder.library == "tensorrt"
    if timed:
        config.set_timing_cache(config.create_timing_cache(timing), False)
    with _interruptible() as interrupted:
        if hasattr(trt, "IProgressMonitor"):
            monitor = _monitor(trt, say, interrupted)
            config.progress_monitor = monitor
        engine = maker.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(
            f"{role}: {builder.title} cannot build the engine: {log.last()}. If memory is short, lower "
            f"the target's ranges or raise its workspace_mib ({job.target.workspace_mib}), in a file "
            "given with --targets."
        )
    if log.impossible:
        raise ExportError(
            f"{role}: {builder.title} finds the profiles impossible: {' | '.join(log.impossible)}. "
            "Change the target's ranges, in a file given with --targets."
        )
    timing = bytes(memoryview(config.get_timing_cache().serialize())) if timed else b""
    return engine, profiles, timing


def _logger(trt: Any, lines: BuildLog) -> Any:
    """A logger for TensorRT that adds to `lines`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Receives TensorRT's log lines."""

        def log(self, severity: Any, text: str) -> None:
            """Add a line."""
            lines.add(int(severity), text)

    return Logger()


def _bits(flags: Any, *names: str) -> int:
    """The bits of those flags that this version of the library has."""
    return sum(1 << int(flags.__members__[name]) for name in names if name in flags.__members__)


def _parse(parser: Any, graph: Path, old: bool, capacity: int | None, most: int) -> bool:
    """Parse a graph, rewritten to a static cache, to opset 17 for `old` parsers, or for all sizes to `most`."""
    if capacity is not None:
        return bool(parser.parse(static_graph(graph, capacity), str(graph)))
    if old:
        return bool(parser.parse(to_opset17(graph, most), str(graph)))
    if has_limits(graph):
        return bool(parser.parse(without_limits(graph, most), str(graph)))
    return bool(parser.parse_from_file(str(graph)))


def _config(job: Job, maker: Any) -> Any:
    """What TensorRT is to build for and with, whatever the graph."""
    builder, target, trt = job.builder, job.target, job.builder.module
    config = maker.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, target.workspace_mib * MIB)
    if "TF32" in trt.BuilderFlag.__members__:
        config.clear_flag(trt.BuilderFlag.TF32)
    if target.optimization_level is not None:
        config.builder_optimization_level = target.optimization_level
    if builder.is_old:
        external = _bits(trt.TacticSource, *EXTERNAL_TACTICS)
        config.set_tactic_sources(config.get_tactic_sources() & ~external)
    if builder.library == "tensorrt_rtx":
        config.num_compute_capabilities = len(target.compute_capabilities)
        for place, capability in enumerate(target.compute_capabilities):
            member = trt.ComputeCapability.__members__[f"SM{capability.replace('.', '')}"]
            config.set_compute_capability(member, place)
    return config


def _add_profile(maker: Any, config: Any, network: Any, role: str, profile: Profile) -> None:
    """Add one profile to what TensorRT builds."""
    made = maker.create_optimization_profile()
    for tensor in inputs_of(network):
        if tensor.name in profile.values:
            made.set_shape_input(tensor.name, *profile.values[tensor.name])
        elif tensor.is_shape_tensor:
            raise ExportError(
                f"{role}: the input {tensor.name!r} is a size to TensorRT, and no profile has a range "
                "for it. Export the checkpoint again with this version of foveate."
            )
        if not tensor.is_shape_tensor:
            made.set_shape(tensor.name, *profile.shapes[tensor.name])
    if config.add_optimization_profile(made) < 0:
        raise ExportError(
            f"{role}: TensorRT does not take the ranges {profile}. Change the target's ranges, in a "
            "file given with --targets."
        )


def _monitor(trt: Any, say: Callable[[str], None], interrupted: threading.Event) -> Any:
    """A progress monitor that reports the phases, and stops the build once it is interrupted."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Receives TensorRT's progress."""

        def __init__(self) -> None:
            """Begin without a phase."""
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            """Report a phase that begins."""
            self.steps[phase] = steps
            say(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            """Report how far a phase is; False stops the build."""
            total = self.steps.get(phase, 0)
            if total > 1:
                say(f"{phase} {step + 1}/{total}")
            return not interrupted.is_set()

        def phase_finish(self, phase: str) -> None:
            """Forget a phase."""
            self.steps.pop(phase, None)

    return Monitor()


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event while TensorRT, which passes on no exception, runs; raise it afterwards."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupted.is_set():
            raise KeyboardInterrupt
