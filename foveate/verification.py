"""What `foveate verify` checks: checksums, graphs against the manifest, and parity if wanted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.bundle import Bundle
from foveate.errors import BackendError, BundleError
from foveate.manifest import EngineVariant, outdated
from foveate.report import bundle_bytes, describe_parity
from foveate.runtime.engines.fit import NAMES
from foveate.runtime.engines.onnx import OnnxEngine, OnnxOptions, resolve_device
from foveate.runtime.pipeline import read_tokenizer
from foveate.terminal import plural, size, table


@dataclass(frozen=True, slots=True)
class Verification:
    """A bundle that was found whole.

    Attributes:
        bundle: The bundle, its checksums compared.
        graphs: For each graph where it was opened, or why it was not.
        engines: For each TensorRT engine, by target and graph, what was checked.
        parity: For each graph its difference from the checkpoint; None without a checkpoint.
    """

    bundle: Bundle
    graphs: dict[str, str]
    engines: dict[str, str]
    parity: dict[str, float] | None


def verify_bundle(
    path: Path,
    checkpoint: str | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Verification:
    """Check a bundle, file by file and graph by graph.

    Args:
        path: The bundle's folder.
        checkpoint: A folder or hub id to compare with in transformers; None to leave that out.
        progress: Told as each stage begins.

    Raises:
        BundleError: No bundle, or one whose files, graphs or engines are not what the manifest says.
        BackendError: A graph that onnxruntime cannot open.
        ParityError: A graph that does not compute what the checkpoint does.
    """
    progress("checksums")
    bundle = Bundle.open(path)
    progress("tokenizer")
    read_tokenizer(bundle)
    graphs = {}
    for role in bundle.manifest.graphs:
        progress(role)
        graphs[role] = open_graph(bundle, role)
    engines = {
        f"{engine.target} {engine.role}": check_engine(bundle, engine)
        for engine in bundle.manifest.engines
    }
    parity = None
    if checkpoint is not None:
        progress("loading torch and transformers")
        from foveate.export import verify

        parity = verify(bundle, checkpoint, progress)
    return Verification(bundle, graphs, engines, parity)


def open_graph(bundle: Bundle, role: str) -> str:
    """Open one graph, compare it with the manifest and close it; say where that was done.

    bfloat16 graphs open on CUDA alone: elsewhere the answer says that they were not opened.
    """
    device = "cpu"
    if bundle.manifest.precision == "bf16":
        try:
            device = resolve_device("cuda")
        except BackendError:
            return "not opened: bf16 graphs need CUDA"
    engine = OnnxEngine(bundle.file(role), OnnxOptions(device=device, frugal=True))
    try:
        bundle.check_graph(role, engine.inputs, engine.outputs)
    finally:
        engine.close()
    return f"opens on {device}, inputs and outputs as promised"


def check_engine(bundle: Bundle, engine: EngineVariant) -> str:
    """See that an engine was built from this bundle's graph; it is not opened, and not run.

    Raises:
        BundleError: It was built from another.
    """
    role = outdated(bundle.manifest, engine)
    if role is not None:
        raise BundleError(
            f"{bundle.root}: the engine of {engine.role} for {engine.target} was not built from this "
            f"bundle's {role}. Build it again: foveate build {bundle.root} --target {engine.target} "
            "--force"
        )
    return f"built from this graph by {NAMES[engine.library]} {engine.version}; not run"


def verification_facts(result: Verification) -> dict[str, Any]:
    """What `foveate verify --json` says."""
    return {
        "root": str(result.bundle.root),
        "files": len(result.bundle.manifest.files),
        "bytes": bundle_bytes(result.bundle),
        "graphs": result.graphs,
        "engines": result.engines,
        "parity": result.parity,
    }


def describe_verification(result: Verification) -> str:
    """What `foveate verify` says."""
    count = plural(len(result.bundle.manifest.files), "file")
    lines = [
        f"{result.bundle.root} is whole",
        f"  checksums of {count} ({size(bundle_bytes(result.bundle))}) match",
        table({**result.graphs, **result.engines}.items()),
    ]
    if result.parity is not None:
        lines += ["largest difference from transformers, over the largest value:"]
        lines += [describe_parity(result.parity)]
    return "\n".join(lines)
