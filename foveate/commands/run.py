"""`foveate run`: one prompt about pictures or a video, answered; and a heatmap if wanted."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.bundle.reader import Bundle
from foveate.commands.options import PATH, as_json, device, force, options, verb
from foveate.errors import ImageError, KeepError
from foveate.terminal import duration, note, plain, plural, size, tell, tell_json

if TYPE_CHECKING:
    from foveate.runtime import Answer, Stream, Timing

STAGES = ("preprocess", "vision", "compress", "prefill", "decode")


@verb('foveate run bundle "What does the sign say?" --image street.jpg --keep 0.25')
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
        metavar="RATE", help="The video's frames to take for each second.",
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
    device,
    click.option(
        "--threads", type=click.IntRange(0, 1024), default=0, metavar="N",
        help="Threads within an operator.  [default: the backend's choice]",
    ),
)  # fmt: skip
def run(
    bundle: Path,
    prompt: str,
    images: tuple[str, ...],
    video: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Answer PROMPT about one or more pictures, or about a video, with BUNDLE.

    The answer goes to standard output as it comes, the rest to standard error.
    """
    if not images and video is None:
        raise click.UsageError(
            "there is no picture and no video; give --image FILE or --video FILE"
        )
    say = None if as_json else functools.partial(tell, newline=False)
    answer = generate(bundle, prompt, images, video=video, say=say, **how)
    if as_json:
        tell_json(answer_facts(answer))
    note(describe_answer(answer))


def generate(
    bundle: Path,
    prompt: str,
    images: Sequence[str],
    *,
    video: Path | None,
    fps: float,
    keep: str | None,
    heatmap: Path | None,
    force: bool,
    backend: str,
    target: str | None,
    device: str,
    threads: int,
    say: Callable[[str], object] | None,
    **sampling: Any,
) -> Answer:
    """Open a bundle and generate one answer; what can be refused early is refused early.

    Args:
        bundle: The bundle's folder.
        prompt: The question.
        images: Paths; "-" is standard input.
        video: A video file, in place of pictures.
        fps: Its frames to take for each second.
        keep: As a person writes it; None takes the bundle's default.
        heatmap: A PNG file to draw; needs a `keep` that drops something.
        force: Replace the heatmap's file if it is there.
        backend: As `Pipeline.load` takes it.
        target: As `Pipeline.load` takes it.
        device: As `Pipeline.load` takes it.
        threads: As `Pipeline.load` takes it.
        say: Called with each piece of the answer as it comes, and with a line break at its end; None
            where the answer is only returned.
        sampling: As `Pipeline.stream` takes it.

    Raises:
        FoveateError: Whatever was wrong with any of it.
    """
    from foveate.runtime import Pipeline
    from foveate.runtime.heatmap import check_target, write_heatmap
    from foveate.runtime.keep import parse_keep
    from foveate.runtime.media.pictures import open_pictures
    from foveate.runtime.media.video import read_video

    wanted = None if keep is None else parse_keep(keep)
    sources = [_image_source(image, images) for image in images]
    if video is not None and heatmap is not None:
        raise ImageError("a heatmap is drawn over pictures; leave it out with a video")
    pictures = open_pictures(sources)
    media: dict[str, Any] = {"images": sources or None}
    if video is not None:
        media["video"] = read_video(video, fps)
    if heatmap is not None:
        check_target(heatmap, force=force)
        _check_ranking(bundle, wanted)
    with Pipeline.load(
        bundle, backend=backend, target=target, device=device, threads=threads
    ) as pipe:
        if pipe.bundle.manifest.weights == "random":
            note(f"{bundle}: its weights are random, so that the answer means nothing")
        answer = _read(pipe.stream(prompt, keep=wanted, **media, **sampling), say)
    if heatmap is not None:
        write_heatmap(heatmap, pictures, answer.visual, force=force)
    return answer


def _image_source(image: str, images: Sequence[str]) -> str | bytes:
    """A path as it stands, and standard input's bytes for "-"."""
    if image != "-":
        return image
    if images.count("-") > 1:
        raise ImageError("standard input holds one picture; give --image - once")
    return sys.stdin.buffer.read()


def _check_ranking(bundle: Path, wanted: float | int | None) -> None:
    """KeepError where all tokens would be kept, since none are ranked then."""
    if wanted is None:
        wanted = Bundle.open(bundle, checksums=False).manifest.compressor.keep
    if isinstance(wanted, float) and wanted == 1:
        raise KeepError(
            "a heatmap shows how tokens were ranked, and nothing is ranked where all are kept; "
            "give --keep below 1, such as --keep 0.25"
        )


def _read(stream: Stream, say: Callable[[str], object] | None) -> Answer:
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


def answer_facts(answer: Answer) -> dict[str, Any]:
    """An answer as plain data."""
    visual = answer.visual
    return {
        "text": answer.text,
        "token_ids": [int(token) for token in answer.token_ids],
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "cache_bytes": answer.cache_bytes,
        "visual": {
            "total": visual.total,
            "kept": visual.kept,
            "indices": plain(visual.indices),
            "relevance": plain(visual.relevance),
            "picture": plain(visual.picture),
            "boxes": plain(visual.boxes),
        },
        "timing": dataclasses.asdict(answer.timing),
    }


def describe_answer(answer: Answer) -> str:
    """What was kept and how long it took, in a line or two."""
    visual, timing = answer.visual, answer.timing
    ending = " (cut at the limit)" if answer.finish_reason == "length" else ""
    return (
        f"kept {visual.kept} of {visual.total} visual tokens; first token after "
        f"{duration(timing.first_token)}, {plural(len(answer.token_ids), 'token')}{ending} in "
        f"{duration(timing.total)}\n({describe_stages(timing)}; KV cache {size(answer.cache_bytes)})"
    )


def describe_stages(timing: Timing) -> str:
    """Seconds by stage, in a line."""
    return ", ".join(f"{stage} {duration(getattr(timing, stage))}" for stage in STAGES)
