"""`foveate verify`: checksums, graphs against the manifest, engines against graphs, and parity if wanted."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click import option

from foveate.bundle.manifest import EngineVariant, outdated
from foveate.bundle.reader import Bundle
from foveate.commands.export import describe_parity
from foveate.commands.inspect import bundle_bytes
from foveate.commands.options import PATH, as_json, load_torch, verb
from foveate.errors import BackendError, BundleError, ParityError
from foveate.machine import capability
from foveate.terminal import Progress, plural, size, table, tell, tell_json


@verb("foveate verify bundle --checkpoint path/to/checkpoint")
@click.argument("bundle", type=PATH)
@option("--checkpoint", metavar="CHECKPOINT",
        help="Also compare every graph with this checkpoint in transformers.")  # fmt: skip
@as_json
def verify(bundle: Path, checkpoint: str | None, as_json: bool) -> None:
    """Check the files and graphs of BUNDLE.

    Checksums, and each graph's inputs and outputs against the manifest; with a checkpoint, also
    what each graph computes.
    """
    with Progress() as progress:
        facts = verify_bundle(bundle, checkpoint, progress.begin)
    tell_json(facts) if as_json else tell(describe_verification(facts))


def verify_bundle(
    path: Path, checkpoint: str | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Check a bundle, file by file and graph by graph.

    Args:
        path: The bundle's folder.
        checkpoint: A folder or hub id to compare with in transformers; None to leave that out.
        progress: Called with each stage's name as it begins.

    Returns:
        What `foveate verify --json` says: the bundle's root, files and bytes; for each graph where it
        was opened, or why it was not; for each TensorRT engine, by target and graph, what was checked;
        and as parity each graph's difference from the checkpoint, or None without one.

    Raises:
        BundleError: No bundle, or one whose files, graphs or engines are not what the manifest says.
        BackendError: A graph that onnxruntime cannot open.
        MissingDependencyError: There is a checkpoint to compare with, and no torch.
        ParityError: A graph that does not compute what the checkpoint does, or an engine that does
            not compute what its graph does.
    """
    from foveate.runtime.load import read_family, read_tokenizer

    progress("checksums")
    bundle = Bundle.open(path)
    progress("tokenizer and chat template")
    read_family(bundle, read_tokenizer(bundle))
    facts: dict[str, Any] = {
        "root": str(bundle.root),
        "files": len(bundle.manifest.files),
        "bytes": bundle_bytes(bundle),
        "graphs": {},
    }
    for role in bundle.manifest.graphs:
        progress(role)
        facts["graphs"][role] = open_graph(bundle, role)
    for engine in bundle.manifest.engines:
        check_engine(bundle, engine)
    facts |= {"engines": run_engines(bundle, progress), "parity": None}
    if checkpoint is not None:
        load_torch(progress)
        from foveate.export.verify import verify as compare_with_checkpoint

        facts["parity"] = compare_with_checkpoint(bundle, checkpoint, progress)
    return facts


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
    options = OnnxOptions(device=device, frugal=True)
    with contextlib.closing(OnnxEngine(bundle.file(role), options)) as engine:
        bundle.check_graph(role, engine.inputs, engine.outputs)
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
            why = str(reasons[engine.target]).split(". ")[0].split(": ", 1)[-1]
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
        with contextlib.closing(backend):
            found.append(run_stages(backend, visual, prompt, count, found[0] if found else {}))
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


def describe_verification(facts: dict[str, Any]) -> str:
    """What `foveate verify` says."""
    lines = [
        f"{facts['root']} is whole",
        f"  checksums of {plural(facts['files'], 'file')} ({size(facts['bytes'])}) match",
        table({**facts["graphs"], **facts["engines"]}.items()),
    ]
    if facts["parity"] is not None:
        lines += ["largest difference from transformers, over the largest value:"]
        lines += [describe_parity(facts["parity"])]
    return "\n".join(lines)
