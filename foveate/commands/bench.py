"""`foveate bench` from its options to what it says, with all that can be refused refused first."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.atomic_write import EXISTS, replace_file, writing
from foveate.bench.facts import bench_facts
from foveate.bench.run import PICTURE, PROMPT, BenchOptions, bench
from foveate.bench.scenes import parse_batches, parse_keeps, parse_list, parse_picture, parse_video
from foveate.bench.table import describe_bench
from foveate.bundle.reader import Bundle
from foveate.errors import DataError, OutputExistsError

PRINTED = "-"


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
    """Measure, write what was asked for, and give what is to be printed.

    Args:
        bundle: The bundle's folder.
        progress: Told as each stage begins.
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
    measured = bench(bundle, options, progress)
    document = json.dumps(bench_facts(measured), indent=2, ensure_ascii=False)
    if target is not None:
        replace_file(target, f"{document}\n".encode(), force=force)
    if plot is not None:
        write_plot(plot, measured, curves, force=force)
    return document if out == PRINTED else describe_bench(measured)


def _check_target(path: Path, force: bool) -> None:
    """Say before measuring what would keep a file from being written after it."""
    with writing(path):
        if os.path.lexists(path) and not force:
            raise OutputExistsError(f"{path} {EXISTS}")
        os.stat(path.absolute().parent / ".")
