"""`foveate export`: a checkpoint to a bundle."""

from pathlib import Path
from typing import Any, get_args

import click

from foveate.bundle.manifest import Operators
from foveate.bundle.quantization_report import cost_facts, describe_cost
from foveate.bundle.reader import Bundle
from foveate.commands.inspect import bundle_bytes, describe_compressor, describe_weights
from foveate.commands.options import PATH, as_json, decoder, force, load_torch, options, verb
from foveate.terminal import Progress, plural, size, table, tell, tell_json

OPERATORS: tuple[Operators, ...] = get_args(Operators)
"""The choices of --operators."""


@verb("foveate export path/to/checkpoint bundle --compressor f_theta.safetensors")
@click.argument("checkpoint")
@click.argument("bundle", type=PATH)
@options(
    click.option(
        "--compressor", default="attention", show_default=True, metavar="FILE|attention",
        help="The weights of a trained f_θ, or the language model's first-layer attention.",
    ),
    click.option(
        "--precision", type=click.Choice(["fp32", "fp16", "bf16", "int8", "fp8", "int4"]),
        default="fp32", show_default=True, help="What the graphs compute in.",
    ),
    click.option(
        "--calibration", type=PATH, metavar="DATA.jsonl",
        help="Your own questions about pictures, for the ranges of int8 and fp8; half are held out to "
        "compare answers before and after quantization.",
    ),
    click.option(
        "--evaluate", type=PATH, metavar="DATA.jsonl",
        help="Questions with answers for this comparison, instead of the held-out half.",
    ),
    click.option(
        "--limit", type=click.IntRange(min=2), metavar="N",
        help="Take only the first N records of each.",
    ),
    click.option(
        "--base", type=click.Choice(["fp32", "fp16"]),
        help="What the rest of int8, fp8 and int4 graphs computes in.  [default: fp32]",
    ),
    click.option(
        "--keep", type=float, default=0.25, show_default=True, metavar="RATIO",
        help="Visual tokens kept where a request does not say, in (0, 1].",
    ),
    click.option(
        "--visual-tokens", type=int, metavar="N",
        help="The most visual tokens of one request.  [default: what the context allows]",
    ),
    click.option(
        "--random-weights", is_flag=True,
        help="Draw the weights at random and read only CHECKPOINT's configuration: for measuring.",
    ),
    click.option(
        "--operators", type=click.Choice(OPERATORS), default="standard", show_default=True,
        help="Operators of the ONNX standard, for any engine, or contrib operators of onnxruntime, "
        "faster there (fp16 and bf16 on CUDA, fp32 on a CPU).",
    ),
    click.option(
        "--target", "names", multiple=True, metavar="NAME",
        help="Also build TensorRT engines for this target, as build does; several times for several.",
    ),
    decoder,
    force,
    as_json,
)  # fmt: skip
def export(
    checkpoint: str,
    bundle: Path,
    compressor: str,
    precision: Any,
    keep: float,
    visual_tokens: int | None,
    random_weights: bool,
    operators: Any,
    names: tuple[str, ...],
    decoder: Any,
    force: bool,
    as_json: bool,
    **quantization: Any,
) -> None:
    """Export CHECKPOINT, a folder or a hub id, to the folder BUNDLE.

    Every graph is compared with transformers before the bundle is moved into place, unless its
    weights are random and large.
    """
    if decoder and not names:
        raise click.UsageError("--decoder is of the engines that --target builds; name a target")
    from foveate.export.tensorrt.build import (
        build_engines,
        build_facts,
        check_targets,
        describe_build,
    )

    built = None
    with Progress() as progress:
        if names:
            check_targets(bundle, names, precision, operators, decoder)
        load_torch(progress.begin)
        from foveate.export.exporter import ExportOptions
        from foveate.export.exporter import export as export_bundle
        from foveate.export.quantization.options import QuantizationOptions

        chosen = ExportOptions(
            compressor=compressor,
            precision=precision,
            keep=keep,
            visual_tokens=visual_tokens,
            force=force,
            random_weights=random_weights,
            operators=operators,
            quantization=QuantizationOptions(**quantization),
        )
        written = export_bundle(checkpoint, bundle, chosen, progress.begin, progress.detail)
        if names:
            built = build_engines(
                bundle, names, decoder=decoder, progress=progress.begin, say=progress.detail
            )
    if as_json:
        tell_json(export_facts(written) | ({"build": build_facts(built)} if built else {}))
        return
    tell(describe_export(written))
    if built:
        tell(describe_build(built))


def export_facts(bundle: Bundle) -> dict[str, Any]:
    """What `foveate export --json` says."""
    manifest = bundle.manifest
    return {
        "root": str(bundle.root),
        "bytes": bundle_bytes(bundle),
        "family": manifest.family,
        "precision": manifest.precision,
        "weights": manifest.weights,
        "operators": manifest.operators,
        "compressor": manifest.compressor.kind,
        "keep": manifest.compressor.keep,
        "visual_tokens": manifest.limits.visual_tokens,
        "parity": manifest.parity,
        "quantization": cost_facts(bundle),
    }


def describe_export(bundle: Bundle) -> str:
    """What `foveate export` says when it is done."""
    manifest, cost = bundle.manifest, cost_facts(bundle)
    return "\n".join(
        [
            f"{bundle.root}: {manifest.family} in {manifest.precision}, "
            f"{size(bundle_bytes(bundle))} in {plural(len(manifest.files), 'file')}",
            f"compressor: {describe_compressor(bundle)}",
            *([f"weights: {describe_weights(manifest)}"] if manifest.weights == "random" else []),
            "largest difference from transformers, over the largest value:",
            describe_parity(manifest.parity) if manifest.parity else "  not compared",
            *([describe_cost(cost)] if cost else []),
        ]
    )


def describe_parity(parity: dict[str, float]) -> str:
    """How far each graph is from the checkpoint run by transformers."""
    return table((role, f"{value:.1e}") for role, value in parity.items())
