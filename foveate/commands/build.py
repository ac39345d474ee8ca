"""`foveate build`: TensorRT engines of a bundle's graphs."""

from pathlib import Path
from typing import Any

import click
from click import Choice, option

from foveate.commands.options import PATH, as_json, decoder, force, options, verb
from foveate.terminal import Progress, tell, tell_json


@verb("foveate build bundle --target rtx")
@click.argument("bundle", type=PATH)
@options(
    option("--target", "names", multiple=True, required=True, metavar="NAME",
           help="What to build for, several times for several: a100, h100, jetson-orin, "
           "jetson-thor, rtx, rtx-40."),
    option("--targets", "targets_file", type=PATH, metavar="FILE.toml",
           help="Changes to these targets, and more of them."),
    option("--precision", type=Choice(["fp32", "fp16"]),
           help="fp16 engines of fp32 graphs: TensorRT before version 10 alone.  [default: the bundle's]"),
    decoder,
    force,
    as_json,
)  # fmt: skip
def build(
    bundle: Path, names: tuple[str, ...], targets_file: Path | None, as_json: bool, **how: Any
) -> None:
    """Build TensorRT engines of BUNDLE's graphs, and keep them in it.

    TensorRT for RTX builds for GPUs that are not there; plain TensorRT builds for the one it runs on.
    """
    from foveate.export.tensorrt.build import build_engines, build_facts, describe_build

    with Progress() as progress:
        result = build_engines(
            bundle, names, targets_file, progress=progress.begin, say=progress.detail, **how
        )
    tell_json(build_facts(result)) if as_json else tell(describe_build(result))
