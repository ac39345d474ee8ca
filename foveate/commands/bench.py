"""`foveate bench`: how fast a bundle answers, with all that can be refused refused before measuring."""

import json
from pathlib import Path
from typing import Any

import click
from click import option

from foveate.atomic_write import check_file, replace_file
from foveate.bundle.reader import Bundle
from foveate.commands.options import PATH, device, force, options, verb
from foveate.errors import DataError
from foveate.terminal import Progress, tell

PRINTED = "-"


@verb("foveate bench bundle --keep 1,0.25 --json bench.json --plot bench.png")
@click.argument("bundle", type=PATH)
@options(
    option("--keep", default="1,0.5,0.25,0.1", metavar="LIST",
           help="Visual tokens to keep, one setting after the other: ratios, counts, 1 for all."),
    option("--batch", default="1", metavar="LIST",
           help="Batch sizes, one after the other, such as 1,4,8."),
    option("--image-size", metavar="WIDTHxHEIGHT,...",
           help="Sizes of pictures of noise.  [default: 1008x1008, unless there is a video]"),
    option("--video", metavar="FRAMESxWIDTHxHEIGHT,...", help="Sizes of videos of noise."),
    option("--new-tokens", type=int, default=32, metavar="N", help="Tokens of every answer."),
    option("--repeats", type=int, default=10, metavar="N",
           help="Measured rounds; every round runs each setting once."),
    option("--warmup", type=int, default=3, metavar="N",
           help="Warm-up rounds before them, which are not measured."),
    device,
    option("--backend", default="auto", help="What runs the graphs."),
    option("--prompt", metavar="TEXT", help="Another question; noise needs no particular one."),
    option("--against", metavar="CHECKPOINT",
           help="Also time this checkpoint in transformers, with all and with the same visual tokens."),
    option("--quality", type=PATH, metavar="EVAL.json",
           help="Draw answers kept into the plot, from what foveate evaluate --json wrote."),
    option("--json", "out", is_flag=False, flag_value=PRINTED, metavar="[OUT.json]",
           help="Write JSON to a file, or print it instead of text."),
    option("--plot", type=PATH, metavar="OUT.png", help="Draw time against tokens kept."),
    force,
)  # fmt: skip
def bench(
    bundle: Path,
    keep: str,
    batch: str,
    image_size: str | None,
    video: str | None,
    prompt: str | None,
    quality: Path | None,
    out: str | None,
    plot: Path | None,
    force: bool,
    **how: Any,
) -> None:
    """Measure how fast BUNDLE answers, and what keeping fewer visual tokens saves.

    Medians of the time in every stage, to the first token and for each later one, of memory and of
    the KV cache; every answer has as many tokens, whatever they say.
    """
    from foveate.bench import run, scenes
    from foveate.bench.result import bench_facts
    from foveate.bench.table import describe_bench

    pictures = scenes.parse_list(image_size, scenes.parse_picture)
    chosen = run.BenchOptions(
        keeps=scenes.parse_keeps(keep),
        batches=scenes.parse_batches(batch),
        scenes=(*pictures, *scenes.parse_list(video, scenes.parse_video)) or (run.PICTURE,),
        prompt=prompt or run.PROMPT,
        **how,
    )
    chosen.check()
    target = None if out in (None, PRINTED) else Path(str(out))
    for path in filter(None, (target, plot)):
        check_file(path, force=force)
    curves = None
    if quality is not None and plot is None:
        raise DataError("--quality is drawn into the plot; say where with --plot OUT.png")
    if plot is not None:
        from foveate.bench.plot import draw_bench, read_quality

        if quality is not None:
            manifest = Bundle.open(bundle, checksums=False).manifest
            curves = read_quality(quality, manifest.compressor.kind)
    with Progress() as progress:
        measured = run.bench(bundle, chosen, progress.begin)
    document = json.dumps(bench_facts(measured), indent=2, ensure_ascii=False)
    if target is not None:
        replace_file(target, f"{document}\n".encode(), force=force)
    if plot is not None:
        figure = draw_bench(measured, curves)
        replace_file(plot, lambda file: figure.savefig(file, format="png"), force=force)
    tell(document if out == PRINTED else describe_bench(measured))
