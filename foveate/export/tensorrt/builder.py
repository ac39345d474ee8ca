"""One ONNX graph to one serialized TensorRT engine."""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.bundle.manifest import GraphSpec, Precision, Profile
from foveate.errors import ExportError
from foveate.export.tensorrt.checks import check_cache, check_network
from foveate.export.tensorrt.library import Builder, is_old
from foveate.export.tensorrt.mixed import set_precisions
from foveate.export.tensorrt.opset17 import conservative_graph
from foveate.export.tensorrt.profiles import Plan
from foveate.export.tensorrt.static import static_graph
from foveate.export.tensorrt.targets import Target
from foveate.export.tensorrt.topk import topk_axes
from foveate.runtime.backends.trt.fit import NAMES
from foveate.runtime.backends.trt.tensor_specs import static_spec

MIB = 1024 * 1024
ERROR, WARNING = 1, 2
OUTSIDE = ("CUBLAS", "CUBLAS_LT", "CUDNN")
FLOAT_ROLES = ("compressor",)
"""Graphs that compute in float32 whatever a bundle's precision."""
IMPOSSIBLE = "not self-consistent"
"""What TensorRT says, as a mere warning, of a profile whose shapes the network cannot have."""


@dataclass(slots=True)
class Journal:
    """What TensorRT said: its last errors and warnings, and profiles that it found impossible."""

    errors: deque[str] = field(default_factory=lambda: deque(maxlen=5))
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=2))
    impossible: list[str] = field(default_factory=list)

    def note(self, severity: int, text: str) -> None:
        """Keep a line that matters; severity 0 is an internal error, 1 an error, 2 a warning."""
        if severity <= ERROR:
            self.errors.append(text)
        elif IMPOSSIBLE in text:
            self.impossible.append(text)
        elif severity == WARNING:
            self.warnings.append(text)

    def last(self) -> str:
        """The errors in a line; the warnings where there are none."""
        return " | ".join(self.errors or self.warnings) or "no reason"


def build_engine(
    builder: Builder,
    target: Target,
    graph: Path,
    role: str,
    spec: GraphSpec,
    plans: Sequence[Plan],
    say: Callable[[str], None],
    timing: bytes = b"",
    precision: Precision = "fp32",
    capacity: int | None = None,
) -> tuple[Any, dict[str, Profile], bytes]:
    """Build the engine of one graph.

    Args:
        builder: The library.
        target: What to build for.
        graph: The ONNX file.
        role: The graph's role, for messages.
        spec: What the manifest says of the graph.
        plans: Its profiles, in order.
        say: Told what TensorRT is at, from any thread.
        timing: A timing cache of plain TensorRT; empty for none.
        precision: What a float32 graph is computed in where TensorRT chooses types itself.
        capacity: Tokens that the cache of a static decoder has room for; None for any other graph.

    Returns:
        The serialized engine, as a buffer; the profiles; the timing cache, empty where there is none.

    Raises:
        ExportError: TensorRT cannot build it, or would build something else; with TensorRT's own words.
    """
    trt, journal = builder.module, Journal()
    title = f"{NAMES[builder.library]} {builder.version}"
    try:
        logger = _logger(trt, journal)
        maker = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        raise ExportError(
            f"{title} cannot start: {journal.last()} ({error}). See what the machine has: foveate "
            "doctor"
        ) from error
    network = maker.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if capacity is not None:
        spec = static_spec(spec, capacity)
    if not _parse(parser, graph, is_old(builder), capacity):
        faults = [parser.get_error(place) for place in range(parser.num_errors)]
        said = "; ".join(str(fault.desc()) for fault in faults) or journal.last()
        raise ExportError(
            f"{role}: {title} cannot take the graph: {said}. Export the checkpoint again with this "
            "version of foveate, or install a later library."
        )
    profiles = {plan.name: plan.ranges(spec, role) for plan in plans}
    largest = [plan.sizes(2) for plan in plans]
    check_network(trt, network, role, spec, largest, topk_axes(graph))
    if capacity is not None:
        check_cache(trt, network, role, spec)

    config = maker.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, target.workspace_mib * MIB)
    if "TF32" in trt.BuilderFlag.__members__:
        config.clear_flag(trt.BuilderFlag.TF32)
    if target.optimization_level is not None:
        config.builder_optimization_level = target.optimization_level
    if is_old(builder):
        config.set_tactic_sources(config.get_tactic_sources() & ~_outside(trt))
        if precision == "fp16" and role not in FLOAT_ROLES:
            config.set_flag(trt.BuilderFlag.FP16)
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            set_precisions(trt, network)
    for profile in profiles.values():
        _add_profile(maker, config, network, role, profile)
    if builder.library == "tensorrt_rtx":
        config.num_compute_capabilities = len(target.compute_capabilities)
        for place, capability in enumerate(target.compute_capabilities):
            member = trt.ComputeCapability.__members__[f"SM{capability.replace('.', '')}"]
            config.set_compute_capability(member, place)
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
            f"{role}: {title} cannot build the engine: {journal.last()}. If memory is short, lower "
            f"the target's ranges or raise its workspace_mib ({target.workspace_mib}), in a file "
            "given with --targets."
        )
    if journal.impossible:
        raise ExportError(
            f"{role}: {title} finds the profiles impossible: {' | '.join(journal.impossible)}. "
            "Change the target's ranges, in a file given with --targets."
        )
    timing = bytes(memoryview(config.get_timing_cache().serialize())) if timed else b""
    return engine, profiles, timing


def _parse(parser: Any, graph: Path, old: bool, capacity: int | None) -> bool:
    """Have a graph parsed: with a static cache, or in older words where newer would be misread."""
    if capacity is not None:
        return bool(parser.parse(static_graph(graph, capacity), str(graph)))
    if old:
        return bool(parser.parse(conservative_graph(graph), str(graph)))
    return bool(parser.parse_from_file(str(graph)))


def _outside(trt: Any) -> int:
    """The kernels of libraries that the slim runtime does not bring, as bits."""
    sources = trt.TacticSource.__members__
    return sum(1 << int(sources[name]) for name in OUTSIDE if name in sources)


def _network_flags(trt: Any) -> int:
    """Explicit batch for TensorRT 8, strong types for 9 and 10; version 11 needs to be told neither."""
    flags = trt.NetworkDefinitionCreationFlag.__members__
    wanted = ("EXPLICIT_BATCH", "STRONGLY_TYPED")
    return sum(1 << int(flags[name]) for name in wanted if name in flags)


def _add_profile(maker: Any, config: Any, network: Any, role: str, profile: Profile) -> None:
    """Give TensorRT the ranges of one profile."""
    made = maker.create_optimization_profile()
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
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


def _logger(trt: Any, journal: Journal) -> Any:
    """A logger for TensorRT that writes into a journal."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """TensorRT's log lines."""

        def log(self, severity: Any, text: str) -> None:
            """Take a line."""
            journal.note(int(severity), text)

    return Logger()


def _monitor(trt: Any, say: Callable[[str], None], interrupted: threading.Event) -> Any:
    """A progress monitor that passes on the phases, and stops the build when asked to."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """TensorRT's progress."""

        def __init__(self) -> None:
            """Know no phase yet."""
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            """Show a phase that begins."""
            self.steps[phase] = steps
            say(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            """Show how far a phase is; False stops the build."""
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
    """Turn Ctrl-C into an event, for an exception cannot cross TensorRT; raise it when that is done."""
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
