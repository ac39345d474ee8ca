"""The command line: one verb a function, and no logic."""

import functools
from pathlib import Path
from typing import Any

import click

from foveate import __version__
from foveate.commands.calibrate import calibrate
from foveate.commands.options import PATH, Verbs, as_json, debug, decoder, force, options, verb
from foveate.terminal import Progress, note, tell, tell_json


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="foveate %(version)s")
def main() -> None:
    """Run multimodal language models on the visual tokens that a question needs.

    \b
    Try it:  foveate demo
    """


main.params.append(debug)
main.add_command(calibrate)


@verb(main, "foveate demo")
@click.option("--checkpoint", type=PATH, help="Default: models/nano.")
@click.option(
    "--out", type=PATH, default=Path("demo"), show_default=True,
    help="Folder for the bundle and the heatmap.",
)  # fmt: skip
@as_json
def demo(checkpoint: Path | None, out: Path, as_json: bool) -> None:
    """Ask the nano checkpoint about a picture, and see where it looked.

    Exports it, asks one of its held-out questions with all visual tokens and with a quarter of
    them, and draws what was kept.
    """
    from foveate.commands.demo import demo_facts, describe_demo, run_demo

    with Progress() as progress:
        shown = run_demo(checkpoint, out, progress.begin)
    tell_json(demo_facts(shown)) if as_json else tell(describe_demo(shown))


@verb(main, "foveate export Qwen/Qwen2-VL-2B-Instruct qwen2-vl --compressor f_theta.safetensors")
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
        help="Your own questions about pictures, for the ranges of int8 and fp8; half are held out "
        "and asked before and after.",
    ),
    click.option(
        "--evaluate", type=PATH, metavar="DATA.jsonl",
        help="Questions with answers to ask before and after, instead of that half.",
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
        "--operators", type=click.Choice(["standard", "onnxruntime"]), default="standard",
        show_default=True,
        help="ONNX's own, for any engine, or those that onnxruntime fuses: faster there (fp16 on CUDA, "
        "fp32 on a CPU).",
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
        progress.begin("loading torch and transformers")
        from foveate.commands.report import describe_export, export_facts
        from foveate.export.exporter import ExportOptions
        from foveate.export.exporter import export as export_bundle
        from foveate.export.quantization.options import QuantizationOptions

        written = export_bundle(
            checkpoint,
            bundle,
            ExportOptions(
                compressor,
                precision,
                keep,
                visual_tokens,
                force,
                random_weights,
                operators,
                QuantizationOptions(**quantization),
            ),
            progress.begin,
            progress.detail,
        )
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


@verb(main, "foveate build qwen2-vl --target rtx")
@click.argument("bundle", type=PATH)
@options(
    click.option(
        "--target", "names", multiple=True, required=True, metavar="NAME",
        help="What to build for, several times for several: a100, h100, jetson-orin, "
        "jetson-thor, rtx, rtx-40.",
    ),
    click.option(
        "--targets", "targets_file", type=PATH, metavar="FILE.toml",
        help="Changes to these targets, and more of them.",
    ),
    click.option(
        "--precision", type=click.Choice(["fp32", "fp16"]),
        help="fp16 engines of fp32 graphs: TensorRT before version 10 alone.  [default: the bundle's]",
    ),
    decoder,
    force,
    as_json,
)  # fmt: skip
def build(
    bundle: Path,
    names: tuple[str, ...],
    targets_file: Path | None,
    precision: Any,
    decoder: Any,
    force: bool,
    as_json: bool,
) -> None:
    """Build TensorRT engines of BUNDLE's graphs, and keep them in it.

    TensorRT for RTX builds for GPUs that are not there; plain TensorRT builds for the one it runs on.
    """
    from foveate.export.tensorrt.build import build_engines, build_facts, describe_build

    with Progress() as progress:
        result = build_engines(
            bundle,
            names,
            targets_file,
            precision=precision,
            decoder=decoder,
            force=force,
            progress=progress.begin,
            say=progress.detail,
        )
    tell_json(build_facts(result)) if as_json else tell(describe_build(result))


@verb(main, "foveate verify qwen2-vl --checkpoint Qwen/Qwen2-VL-2B-Instruct")
@click.argument("bundle", type=PATH)
@click.option(
    "--checkpoint", metavar="CHECKPOINT",
    help="Also compare every graph with this checkpoint in transformers.",
)  # fmt: skip
@as_json
def verify(bundle: Path, checkpoint: str | None, as_json: bool) -> None:
    """Check the files and graphs of BUNDLE.

    Checksums, and each graph's inputs and outputs against the manifest; with a checkpoint, also
    what each graph computes.
    """
    from foveate.commands.verify import describe_verification, verification_facts, verify_bundle

    with Progress() as progress:
        result = verify_bundle(bundle, checkpoint, progress.begin)
    tell_json(verification_facts(result)) if as_json else tell(describe_verification(result))


@verb(main, "foveate inspect qwen2-vl")
@click.argument("bundle", type=PATH)
@as_json
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds; checksums are left to verify."""
    from foveate.bundle.reader import Bundle
    from foveate.commands.report import bundle_facts, describe_bundle

    opened = Bundle.open(bundle, checksums=False)
    tell_json(bundle_facts(opened)) if as_json else tell(describe_bundle(opened))


@verb(main, 'foveate run qwen2-vl "What does the sign say?" --image street.jpg --keep 0.25')
@click.argument("bundle", type=PATH)
@click.argument("prompt")
@options(
    click.option(
        "--image", "images", multiple=True, metavar="FILE",
        help="A picture; several times for several, - for standard input.",
    ),
    click.option("--video", type=PATH, metavar="FILE", help="A video, in place of pictures."),
    click.option(
        "--fps", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True,
        metavar="RATE", help="The video's frames to look at for each second.",
    ),
    click.option(
        "--keep", metavar="RATIO|N",
        help="Visual tokens to keep: 0.25, 300, or 1 for all.  [default: the bundle's]",
    ),
    click.option("--max-new-tokens", type=int, metavar="N", help="The longest answer."),
    click.option(
        "--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."
    ),
    click.option(
        "--top-p", type=float, default=1.0, show_default=True, help="Nucleus sampling."
    ),
    click.option("--top-k", type=int, help="Sample from this many best tokens."),
    click.option("--seed", type=click.IntRange(min=0), help="Makes sampling repeatable."),
    click.option(
        "--heatmap", type=PATH, metavar="OUT.png",
        help="Draw what was relevant and what was kept.",
    ),
    force,
    as_json,
    click.option(
        "--backend", type=click.Choice(["auto", "onnxruntime", "tensorrt"]), default="auto",
        show_default=True, help="What runs the graphs; auto is onnxruntime.",
    ),
    click.option(
        "--target", metavar="NAME",
        help="Whose TensorRT engines to run, where those of several targets run here.",
    ),
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
        help="Where to run; one that cannot be had is an error.",
    ),
    click.option(
        "--threads", type=click.IntRange(0, 1024), default=0, metavar="N",
        help="Threads within an operator.  [default: the backend's choice]",
    ),
)  # fmt: skip
def run(
    bundle: Path,
    prompt: str,
    images: tuple[str, ...],
    keep: str | None,
    heatmap: Path | None,
    force: bool,
    as_json: bool,
    backend: str,
    target: str | None,
    device: str,
    threads: int,
    **sampling: Any,
) -> None:
    """Ask BUNDLE the question PROMPT about one or more pictures, or about a video.

    The answer goes to standard output as it comes, the rest to standard error.
    """
    if not images and sampling["video"] is None:
        raise click.UsageError("there is nothing to look at; give --image FILE or --video FILE")
    from foveate.commands.report import answer_facts, describe_answer
    from foveate.commands.run import ask

    answer = ask(
        bundle,
        prompt,
        images,
        keep=keep,
        heatmap=heatmap,
        force=force,
        backend=backend,
        target=target,
        device=device,
        threads=threads,
        say=None if as_json else functools.partial(tell, newline=False),
        **sampling,
    )
    if as_json:
        tell_json(answer_facts(answer))
    note(describe_answer(answer))


@verb(main, "foveate bench qwen2-vl --keep 1,0.25 --json bench.json --plot bench.png")
@click.argument("bundle", type=PATH)
@options(
    click.option(
        "--keep", default="1,0.5,0.25,0.1", show_default=True, metavar="LIST",
        help="Visual tokens to keep, one after the other: ratios, counts, 1 for all.",
    ),
    click.option(
        "--batch", default="1", show_default=True, metavar="LIST",
        help="Requests to ask at once, one number after the other, such as 1,4,8.",
    ),
    click.option(
        "--image-size", metavar="WIDTHxHEIGHT,...",
        help="Pictures of noise to ask about.  [default: 1008x1008, unless there is a video]",
    ),
    click.option(
        "--video", metavar="FRAMESxWIDTHxHEIGHT,...", help="Videos of noise to ask about."
    ),
    click.option(
        "--new-tokens", type=int, default=32, show_default=True, metavar="N",
        help="Tokens of every answer.",
    ),
    click.option(
        "--repeats", type=int, default=10, show_default=True, metavar="N",
        help="Rounds that count; in each, every way to answer has its turn.",
    ),
    click.option(
        "--warmup", type=int, default=3, show_default=True, metavar="N", help="Rounds before them."
    ),
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
        help="Where to run; one that cannot be had is an error.",
    ),
    click.option("--backend", default="auto", show_default=True, help="What runs the graphs."),
    click.option(
        "--prompt", metavar="TEXT", help="Another question; noise needs no particular one."
    ),
    click.option(
        "--against", metavar="CHECKPOINT",
        help="Also time this checkpoint in transformers, with all and with the same visual tokens.",
    ),
    click.option(
        "--quality", type=PATH, metavar="EVAL.json",
        help="Draw right answers into the plot, from what calibrate evaluate --out wrote.",
    ),
    click.option(
        "--json", "out", is_flag=False, flag_value="-", metavar="[OUT.json]",
        help="Write JSON to a file, or print it instead of text.",
    ),
    click.option("--plot", type=PATH, metavar="OUT.png", help="Draw time against tokens kept."),
    force,
)  # fmt: skip
def bench(bundle: Path, **how: Any) -> None:
    """Measure how fast BUNDLE answers, and what keeping fewer visual tokens saves.

    Medians of the time in every stage, to the first token and for each later one, of memory and of
    the KV cache; every answer has as many tokens, whatever they say.
    """
    from foveate.commands.bench import run_bench

    with Progress() as progress:
        text = run_bench(bundle, progress.begin, **how)
    tell(text)


@verb(main, "foveate doctor")
@as_json
def doctor(as_json: bool) -> None:
    """Show what this machine can run, and why not the rest."""
    from foveate.commands.doctor import describe_machine, examine, machine_facts

    found = examine()
    tell_json(machine_facts(found)) if as_json else tell(describe_machine(found))
