"""`foveate export`: a checkpoint to a bundle."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click
from click import Choice, IntRange, option

from foveate.bundle.manifest import Operators
from foveate.bundle.quantization_report import cost_facts, describe_cost
from foveate.bundle.reader import Bundle
from foveate.bundle.writer import BundleWriter
from foveate.commands.inspect import bundle_bytes, describe_compressor, describe_weights
from foveate.commands.options import PATH, as_json, decoder, force, load_torch, options, verb
from foveate.terminal import Progress, plural, size, table, tell, tell_json

OPERATORS: tuple[Operators, ...] = get_args(Operators)
"""The choices of --operators."""


@verb("foveate export path/to/checkpoint bundle --compressor f_theta.safetensors")
@click.argument("checkpoint")
@click.argument("bundle", type=PATH)
@options(
    option("--compressor", default="attention", metavar="FILE|attention|attention:FORM",
           help="The weights of a trained f_θ, or the language model's first-layer attention, its words "
           "weighed by FORM: mean, as in the paper, or unusual, which is attention's own."),
    option("--precision", type=Choice(["fp32", "fp16", "bf16", "int8", "fp8", "int4"]), default="fp32",
           help="What the graphs compute in."),
    option("--calibration", type=PATH, metavar="DATA.jsonl",
           help="Your own questions about pictures, for the ranges of int8 and fp8; half are held out to "
           "compare answers before and after quantization."),
    option("--evaluate", type=PATH, metavar="DATA.jsonl",
           help="Questions with answers for this comparison, instead of the held-out half."),
    option("--limit", type=IntRange(min=2), metavar="N",
           help="Take only the first N records of each."),
    option("--base", type=Choice(["fp32", "fp16"]),
           help="What the rest of int8, fp8 and int4 graphs computes in.  [default: fp32]"),
    option("--keep", default="0.25", metavar="RATIO|auto",
           help="Visual tokens kept where a request does not say: a ratio in (0, 1], or auto."),
    option("--auto-keep", metavar="SHARE,LEAST,MOST",
           help="What auto keeps: the fewest visual tokens with this share of the relevance, and at least "
           "and at most these ratios.  [default: what `calibrate auto-keep` found]"),
    option("--visual-tokens", type=int, metavar="N",
           help="The most visual tokens of one request.  [default: what the context allows]"),
    option("--random-weights", is_flag=True,
           help="Draw the weights at random and read only CHECKPOINT's configuration: for measuring."),
    option("--operators", type=Choice(OPERATORS), default="standard",
           help="Operators of the ONNX standard, for any engine, or contrib operators of onnxruntime, "
           "faster there (fp16 and bf16 on CUDA, fp32 on a CPU)."),
    option("--target", "names", multiple=True, metavar="NAME",
           help="Also build TensorRT engines for this target, as build does; several times for several."),
    decoder,
    force,
    as_json,
)  # fmt: skip
def export(
    checkpoint: str, bundle: Path, names: tuple[str, ...], decoder: Any, as_json: bool, **how: Any
) -> None:
    """Export CHECKPOINT, a folder or a hub id, to the folder BUNDLE.

    Every graph is compared with transformers before the bundle is moved into place, unless its
    weights are random and large.
    """
    if decoder and not names:
        raise click.UsageError("--decoder is of the engines that --target builds; name a target")
    from foveate.export.options import check_choices
    from foveate.export.quantization.options import QuantizationOptions
    from foveate.export.tensorrt import build
    from foveate.runtime.keep import parse_auto, parse_default

    how["keep"] = parse_default(how["keep"])
    how["auto_keep"] = None if how["auto_keep"] is None else parse_auto(how["auto_keep"])
    parts = {field.name: how.pop(field.name) for field in fields(QuantizationOptions)}
    quantization, force = QuantizationOptions(**parts), how.pop("force")
    check_choices(**how, quantization=quantization)
    BundleWriter(bundle, force=force).check()
    built = None
    with Progress() as progress:
        if names:
            build.check_targets(bundle, names, how["precision"], how["operators"], decoder)
        load_torch(progress.begin)
        from foveate.export.exporter import ExportOptions
        from foveate.export.exporter import export as export_bundle

        chosen = ExportOptions(**how, force=force, quantization=quantization)
        written = export_bundle(checkpoint, bundle, chosen, progress.begin, progress.detail)
        if names:
            built = build.build_engines(
                written, names, decoder=decoder, progress=progress.begin, say=progress.detail
            )
    if as_json:
        facts = {"build": build.build_facts(built)} if built else {}
        tell_json(export_facts(written) | facts)
        return
    tell(describe_export(written))
    if built:
        tell(build.describe_build(built))


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
        "words": manifest.compressor.words,
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
