"""`foveate verify`: checksums, graphs against the manifest, engines against graphs, and parity if wanted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click import option

from foveate.bundle.manifest import EngineVariant, outdated
from foveate.bundle.reader import Bundle
from foveate.commands.export import describe_parity
from foveate.commands.inspect import bundle_bytes
from foveate.commands.options import PATH, as_json, load_torch, verb
from foveate.errors import BackendError, BundleError, FoveateError, ParityError
from foveate.machine import capability
from foveate.terminal import Progress, plural, size, table, tell, tell_json


@verb("foveate verify bundle --checkpoint path/to/checkpoint")
@click.argument("bundle", type=PATH)
@option(
    "--checkpoint", metavar="CHECKPOINT",
    help="Also compare every graph with this checkpoint in transformers.",
)  # fmt: skip
@as_json
def verify(bundle: Path, checkpoint: str | None, as_json: bool) -> None:
    """Check the files and graphs of BUNDLE.

    Checksums, and each graph's inputs and outputs against the manifest; with a checkpoint, also
    what each graph computes.
    """
    with Progress() as progress:
        result = verify_bundle(bundle, checkpoint, progress.begin)
    tell_json(verification_facts(result)) if as_json else tell(describe_verification(result))


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
    path: Path, checkpoint: str | None = None, progress: Callable[[str], None] = lambda stage: None
) -> Verification:
    """Check a bundle, file by file and graph by graph.

    Args:
        path: The bundle's folder.
        checkpoint: A folder or hub id to compare with in transformers; None to leave that out.
        progress: Called with each stage's name as it begins.

    Raises:
        BundleError: No bundle, or one whose files, graphs or engines are not what the manifest says.
        BackendError: A graph that onnxruntime cannot open.
        MissingDependencyError: There is a checkpoint to compare with, and no torch.
        ParityError: A graph that does not compute what the checkpoint does, or an engine that does
            not compute what its graph does.
    """
    from foveate.runtime.load import read_tokenizer

    progress("checksums")
    bundle = Bundle.open(path)
    progress("tokenizer")
    read_tokenizer(bundle)
    graphs = {}
    for role in bundle.manifest.graphs:
        progress(role)
        graphs[role] = open_graph(bundle, role)
    for engine in bundle.manifest.engines:
        check_engine(bundle, engine)
    engines = run_engines(bundle, progress)
    parity = None
    if checkpoint is not None:
        load_torch(progress)
        from foveate.export.verify import verify as compare_with_checkpoint

        parity = compare_with_checkpoint(bundle, checkpoint, progress)
    return Verification(bundle, graphs, engines, parity)


def open_graph(bundle: Bundle, role: str) -> str:
    """Open one graph, compare it with the manifest and close it; say where that was done.

    bfloat16 graphs open on CUDA alone: elsewhere the text says that they were not opened.

    Raises:
        BackendError: onnxruntime cannot open it.
        BundleError: Its inputs or outputs are not what the manifest says.
    """
    from foveate.runtime.backends.ort.session import OnnxEngine, OnnxOptions, resolve_device

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


def check_engine(bundle: Bundle, engine: EngineVariant) -> None:
    """Check that an engine was built from this bundle's graph, without opening it.

    Raises:
        BundleError: It was built from another.
    """
    from foveate.runtime.backends.trt.fit import rebuild

    role = outdated(bundle.manifest, engine)
    if role is not None:
        raise BundleError(
            f"{bundle.root}: the engine of {engine.role} for {engine.target} was not built from this "
            f"bundle's {role}. Build it again: {rebuild(bundle, engine.target)}"
        )


def run_engines(bundle: Bundle, progress: Callable[[str], None]) -> dict[str, str]:
    """Compare the engines that fit this machine with their graphs; for each engine what came of it.

    Raises:
        ParityError: An engine does not compute what its graph does.
        BackendError: An engine that fits cannot be run.
    """
    from foveate.runtime.backends.trt.choose import fitting_engines
    from foveate.runtime.backends.trt.library import installed_version

    fitting, reasons = fitting_engines(bundle, capability(), installed_version)
    checked = {}
    for engine in bundle.manifest.engines:
        if engine.target in fitting and f"{engine.target} {engine.role}" not in checked:
            progress(f"engines for {engine.target}")
            checked.update(compare_engines(bundle, fitting[engine.target]))
        elif engine.target in reasons:
            why = first_sentence(reasons[engine.target])
            checked[f"{engine.target} {engine.role}"] = f"{origin(engine)}; not run: {why}"
    return checked


def compare_engines(bundle: Bundle, engines: dict[str, EngineVariant]) -> dict[str, str]:
    """Run the engines of a target and their graphs on a small request, stage by stage.

    Raises:
        ParityError: An engine does not compute what its graph does.
        BackendError: An engine or a graph cannot be run.
    """
    from foveate.commands.stage_parity import BOUNDS, differences, run_stages, small_request
    from foveate.runtime.backends import open_backend
    from foveate.runtime.backends.trt.fit import rebuild

    if bundle.manifest.precision == "bf16":
        return {
            f"{engine.target} {role}": f"{origin(engine)}; not run: onnxruntime's CPU provider cannot "
            "run the bf16 graph beside it"
            for role, engine in engines.items()
        }
    target = engines["vision"].target
    visual, prompt = small_request(bundle)
    count = max(1, visual.tokens // 4)
    found: list[dict[str, Any]] = []
    for backend in (
        open_backend(bundle, "onnxruntime", device="cpu"),
        open_backend(bundle, "tensorrt", target=target),
    ):
        try:
            found.append(run_stages(backend, visual, prompt, count, found[0] if found else {}))
        finally:
            backend.close()
    worst, checked = differences(found[1], found[0]), {}
    for role, engine in engines.items():
        bound = BOUNDS[engine.precision]
        if not worst[role] <= bound:
            raise ParityError(
                f"{bundle.root}: the engine of {role} for {target} differs from its graph by "
                f"{worst[role]:.2g} of the largest value, over the {bound:g} allowed in "
                f"{engine.precision}. Build it again: {rebuild(bundle, target)}"
            )
        checked[f"{target} {role}"] = (
            f"{origin(engine)}; run, within {worst[role]:.1e} of the graph"
        )
    return checked


def origin(engine: EngineVariant) -> str:
    """What an engine was built from and by."""
    from foveate.runtime.backends.trt.fit import NAMES

    cache = " with a static cache" if engine.decoder == "static" else ""
    return f"built from this graph{cache} by {NAMES[engine.library]} {engine.version}"


def first_sentence(error: FoveateError) -> str:
    """Why an engine was not run, without the advice."""
    return str(error).split(". ")[0].split(": ", 1)[-1]


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
