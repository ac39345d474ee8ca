"""One question from the command line: pictures in, text out, and a heatmap if wanted."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveate.bundle.reader import Bundle
from foveate.errors import ImageError, KeepError
from foveate.runtime import Answer, Pipeline, Stream
from foveate.runtime.heatmap import check_target, write_heatmap
from foveate.runtime.keep import parse_keep
from foveate.runtime.media.pictures import open_pictures
from foveate.runtime.media.video import FPS, read_video
from foveate.terminal import note


def ask(
    bundle: Path,
    prompt: str,
    images: Sequence[str],
    *,
    video: Path | None = None,
    fps: float = FPS,
    keep: str | None = None,
    heatmap: Path | None = None,
    force: bool = False,
    backend: str = "auto",
    target: str | None = None,
    device: str = "auto",
    threads: int = 0,
    say: Callable[[str], object] | None = None,
    **sampling: Any,
) -> Answer:
    """Open a bundle and ask it one question; what can be refused early is refused early.

    Args:
        bundle: The bundle's folder.
        prompt: The question.
        images: Paths; "-" is standard input.
        video: A video file, in place of pictures.
        fps: Its frames to look at for each second.
        keep: As a person writes it; None takes the bundle's default.
        heatmap: A PNG file to draw; needs a `keep` that drops something.
        force: Replace the heatmap's file if it is there.
        backend: As `Pipeline.load` takes it.
        target: As `Pipeline.load` takes it.
        device: As `Pipeline.load` takes it.
        threads: As `Pipeline.load` takes it.
        say: Told each piece of the answer as it comes, and a line break at its end.
        sampling: As `Pipeline.stream` takes it.

    Raises:
        FoveateError: Whatever was wrong with any of it.
    """
    wanted = None if keep is None else parse_keep(keep)
    sources = [_source(image, images) for image in images]
    if video is not None and heatmap is not None:
        raise ImageError("a heatmap is drawn over pictures; leave it out with a video")
    pictures = open_pictures(sources)
    about: dict[str, Any] = {"images": sources or None}
    if video is not None:
        about["video"] = read_video(video, fps)
    if heatmap is not None:
        check_target(heatmap, force=force)
        _check_ranks(bundle, wanted)
    with Pipeline.load(
        bundle, backend=backend, target=target, device=device, threads=threads
    ) as pipe:
        if pipe.bundle.manifest.weights == "random":
            note(f"{bundle}: its weights are random, so that the answer means nothing")
        stream = pipe.stream(prompt, keep=wanted, **about, **sampling)
        answer = _listen(stream, say)
    if heatmap is not None:
        write_heatmap(heatmap, pictures, answer.visual, force=force)
    return answer


def _source(image: str, images: Sequence[str]) -> str | bytes:
    """A path as it stands, and standard input's bytes for "-"."""
    if image != "-":
        return image
    if images.count("-") > 1:
        raise ImageError("standard input holds one picture; give --image - once")
    return sys.stdin.buffer.read()


def _check_ranks(bundle: Path, wanted: float | int | None) -> None:
    """KeepError where all tokens would be kept, since none are ranked then."""
    if wanted is None:
        wanted = Bundle.open(bundle, checksums=False).manifest.compressor.keep
    if isinstance(wanted, float) and wanted == 1:
        raise KeepError(
            "a heatmap shows how tokens were ranked, and nothing is ranked where all are kept; "
            "give --keep below 1, such as --keep 0.25"
        )


def _listen(stream: Stream, say: Callable[[str], object] | None) -> Answer:
    """Read an answer to its end; what was said ends with a line break, whatever happens."""
    if say is None:
        for _ in stream:
            pass
        return stream.answer
    try:
        for piece in stream:
            say(piece)
    finally:
        say("\n")
    return stream.answer
