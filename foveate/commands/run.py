"""`foveate run`: one prompt about pictures or a video, answered; and a heatmap if wanted."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click import Choice, FloatRange, IntRange, option

from foveate.bundle.reader import Bundle
from foveate.commands.options import (
    PATH,
    as_json,
    device,
    force,
    keep_marks,
    options,
    pixels,
    system,
    verb,
)
from foveate.errors import ImageError, KeepError
from foveate.terminal import duration, note, plain, plural, size, tell, tell_json

if TYPE_CHECKING:
    from foveate.runtime import Answer, Stream

STAGES = ("preprocess", "vision", "compress", "prefill", "decode")


@verb('foveate run bundle "What does the sign say?" --image street.jpg --keep 0.25')
@click.argument("bundle", type=PATH)
@click.argument("prompt")
@options(
    option("--image", "images", multiple=True, metavar="FILE",
           help="A picture; several times for several, - for standard input."),
    option("--video", type=PATH, metavar="FILE", help="A video, in place of pictures."),
    option("--fps", type=FloatRange(0, min_open=True), default=2.0, metavar="RATE",
           help="The video's frames to take for each second."),
    *pixels,
    system,
    option("--keep", metavar="RATIO|N",
           help="Visual tokens to keep: 0.25, 300, or 1 for all.  [default: the bundle's]"),
    option("--max-new-tokens", type=int, metavar="N", help="The longest answer."),
    option("--temperature", type=float, default=0.0, help="0 is greedy."),
    option("--top-p", type=float, default=1.0, help="Nucleus sampling."),
    option("--top-k", type=int, help="Sample from this many best tokens."),
    option("--seed", type=IntRange(min=0), help="Makes sampling repeatable."),
    keep_marks,
    option("--heatmap", type=PATH, metavar="OUT.png",
           help="Draw what was relevant and what was kept."),
    force,
    as_json,
    option("--backend", type=Choice(["auto", "onnxruntime", "tensorrt"]), default="auto",
           help="What runs the graphs; auto is onnxruntime."),
    option("--target", metavar="NAME",
           help="Whose TensorRT engines to run, where those of several targets run here."),
    device,
    option("--threads", type=IntRange(0, 1024), default=0, show_default=False, metavar="N",
           help="Threads within an operator.  [default: the backend's choice]"),
)  # fmt: skip
def run(
    bundle: Path,
    prompt: str,
    images: tuple[str, ...],
    video: Path | None,
    fps: float,
    keep: str | None,
    system: str | None,
    keep_marks: bool,
    heatmap: Path | None,
    force: bool,
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
    loading = {name: how.pop(name) for name in ("backend", "target", "device", "threads")}
    with Pipeline.load(bundle, **loading) as pipe:
        if pipe.bundle.manifest.weights == "random":
            note(f"{bundle}: its weights are random, so that the answer means nothing")
        how |= {"keep": wanted, "skip_special_tokens": not keep_marks}
        stream = pipe.stream(asked(prompt, system, len(images)), **media, **how)
        answer = _read(stream, None if as_json else functools.partial(tell, newline=False))
    if heatmap is not None:
        write_heatmap(heatmap, pictures, answer.visual, force=force)
    if as_json:
        tell_json(answer_facts(answer))
    note(describe_answer(answer))


def asked(prompt: str, system: str | None, images: int) -> str | list[dict[str, Any]]:
    """A prompt, or the conversation that a system prompt makes of it, about pictures or else a video."""
    if system is None:
        return prompt
    shown = [{"type": "image"}] * images or [{"type": "video"}]
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": [*shown, {"type": "text", "text": prompt}]},
    ]


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
            one.name: plain(getattr(visual, one.name)) for one in dataclasses.fields(visual)
        },
        "timing": dataclasses.asdict(answer.timing),
    }


def describe_answer(answer: Answer) -> str:
    """What was kept and how long it took, in a line or two."""
    visual, timing = answer.visual, answer.timing
    stages = ", ".join(f"{stage} {duration(getattr(timing, stage))}" for stage in STAGES)
    ending = " (cut at the limit)" if answer.finish_reason == "length" else ""
    return (
        f"kept {visual.kept} of {visual.total} visual tokens; first token after "
        f"{duration(timing.first_token)}, {plural(len(answer.token_ids), 'token')}{ending} in "
        f"{duration(timing.total)}\n({stages}; KV cache {size(answer.cache_bytes)})"
    )
