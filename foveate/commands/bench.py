"""`foveate bench`: how fast a bundle answers, with all that can be refused refused before measuring."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from foveate.atomic_write import EXISTS, replace_file, writing
from foveate.bundle.reader import Bundle
from foveate.commands.options import PATH, device, force, options, verb
from foveate.errors import DataError, OutputExistsError
from foveate.terminal import Progress, tell

PRINTED = "-"


@verb("foveate bench bundle --keep 1,0.25 --json bench.json --plot bench.png")
@click.argument("bundle", type=PATH)
@options(
    click.option(
        "--keep", default="1,0.5,0.25,0.1", show_default=True, metavar="LIST",
        help="Visual tokens to keep, one setting after the other: ratios, counts, 1 for all.",
    ),
    click.option(
        "--batch", default="1", show_default=True, metavar="LIST",
        help="Batch sizes, one after the other, such as 1,4,8.",
    ),
    click.option(
        "--image-size", metavar="WIDTHxHEIGHT,...",
        help="Sizes of pictures of noise.  [default: 1008x1008, unless there is a video]",
    ),
    click.option(
        "--video", metavar="FRAMESxWIDTHxHEIGHT,...", help="Sizes of videos of noise."
    ),
    click.option(
        "--new-tokens", type=int, default=32, show_default=True, metavar="N",
        help="Tokens of every answer.",
    ),
    click.option(
        "--repeats", type=int, default=10, show_default=True, metavar="N",
        help="Measured rounds; every round runs each setting once.",
    ),
    click.option(
        "--warmup", type=int, default=3, show_default=True, metavar="N",
        help="Warm-up rounds before them, which are not measured.",
    ),
    device,
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
        help="Draw accuracy into the plot, from what calibrate evaluate --out wrote.",
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
    with Progress() as progress:
        text = run_bench(bundle, progress.begin, **how)
    tell(text)


def run_bench(
    bundle: Path,
    progress: Callable[[str], None],
    *,
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
) -> str:
    """Measure, write the files that were requested, and return what is to be printed.

    Args:
        bundle: The bundle's folder.
        progress: Called with each stage's name as it begins.
        keep: A list, as a person writes it.
        batch: Another.
        image_size: A list of sizes; None for the default, unless there is a video.
        video: A list of frames and sizes.
        prompt: The question; None for the default.
        quality: An evaluation to draw into the plot.
        out: A file for the JSON document, or "-" to print it.
        plot: A PNG file to draw.
        force: Replace files that are there.
        how: The rest of `BenchOptions`.

    Raises:
        FoveateError: Whatever was wrong with any of it.
    """
    from foveate.bench.result import bench_facts
    from foveate.bench.run import PICTURE, PROMPT, BenchOptions
    from foveate.bench.run import bench as measure
    from foveate.bench.scenes import (
        parse_batches,
        parse_keeps,
        parse_list,
        parse_picture,
        parse_video,
    )
    from foveate.bench.table import describe_bench

    scenes = (*parse_list(image_size, parse_picture), *parse_list(video, parse_video))
    options = BenchOptions(
        keeps=parse_keeps(keep),
        batches=parse_batches(batch),
        scenes=scenes or (PICTURE,),
        prompt=prompt or PROMPT,
        **how,
    )
    options.check()
    target = None if out in (None, PRINTED) else Path(str(out))
    for path in (target, plot):
        if path is not None:
            _check_target(path, force)
    curves = None
    if quality is not None and plot is None:
        raise DataError("--quality is drawn into the plot; say where with --plot OUT.png")
    if plot is not None:
        from foveate.bench.plot import read_quality, write_plot

        if quality is not None:
            manifest = Bundle.open(bundle, checksums=False).manifest
            curves = read_quality(quality, manifest.compressor.kind)
    measured = measure(bundle, options, progress)
    document = json.dumps(bench_facts(measured), indent=2, ensure_ascii=False)
    if target is not None:
        replace_file(target, f"{document}\n".encode(), force=force)
    if plot is not None:
        write_plot(plot, measured, curves, force=force)
    return document if out == PRINTED else describe_bench(measured)


def _check_target(path: Path, force: bool) -> None:
    """Raise before measuring what would keep a file from being written after it."""
    with writing(path):
        if os.path.lexists(path) and not force:
            raise OutputExistsError(f"{path} {EXISTS}")
        os.stat(path.absolute().parent / ".")
