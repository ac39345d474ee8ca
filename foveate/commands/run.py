"""`foveate run`: one prompt about pictures or a video, answered; and a heatmap if wanted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click import IntRange, option

from foveate.bundle.reader import Bundle
from foveate.commands.options import (
    LOADING,
    PATH,
    as_json,
    force,
    keep_marks,
    loading,
    options,
    pixels,
    system,
    verb,
)
from foveate.errors import ImageError, KeepError, LimitError
from foveate.terminal import duration, note, plain, plural, size, tell, tell_json

if TYPE_CHECKING:
    from foveate.runtime import Answer, Stream
    from foveate.runtime.keep import Keep

STAGES = ("preprocess", "vision", "compress", "prefill", "decode")
ENDINGS = {"length": " (cut at the limit)", "deadline": " (cut at the deadline)"}


@verb('foveate run bundle "What does the sign say?" --image street.jpg --keep 0.25')
@click.argument("bundle", type=PATH)
@click.argument("prompt")
@options(
    option("--image", "images", multiple=True, metavar="FILE",
           help="A picture; several times for several, - for standard input."),
    option("--video", type=PATH, metavar="FILE", help="A video, in place of pictures."),
    option("--fps", type=float, metavar="RATE",
           help="The video's frames to take for each second.  [default: the model's, usually 2]"),
    option("--frames", type=int, metavar="N", help="How many of its frames to take, instead."),
    option("--start", type=float, default=0.0, show_default=False, metavar="SECONDS",
           help="Where in the video to begin.  [default: its first frame]"),
    option("--end", type=float, metavar="SECONDS",
           help="Where in it to end.  [default: its last frame]"),
    *pixels,
    system,
    option("--keep", metavar="RATIO|N|auto",
           help="Visual tokens to keep: 0.25, 300, 1 for all, or auto for as many as the question needs.  "
           "[default: the bundle's]"),
    option("--max-new-tokens", type=int, metavar="N", help="The longest answer."),
    option("--deadline", type=float, metavar="SECONDS",
           help="End the answer so long after the bundle is loaded, with what there is of it by then."),
    option("--temperature", type=float, help="0 is greedy.  [default: the checkpoint's own]"),
    option("--top-p", type=float, help="Nucleus sampling.  [default: the checkpoint's own]"),
    option("--top-k", type=int,
           help="Sample from this many best tokens, 0 for all.  [default: the checkpoint's own]"),
    option("--seed", type=IntRange(min=0), help="Makes sampling repeatable."),
    keep_marks,
    option("--heatmap", type=PATH, metavar="OUT.png",
           help="Draw what was relevant and what was kept, of a video frame by frame."),
    force,
    as_json,
    *loading,
)  # fmt: skip
def run(
    bundle: Path,
    prompt: str,
    images: tuple[str, ...],
    video: Path | None,
    fps: float | None,
    frames: int | None,
    start: float,
    end: float | None,
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
    from foveate.runtime.contact_sheet import FRAME_PIXELS, write_contact_sheet
    from foveate.runtime.heatmap import check_target, write_heatmap
    from foveate.runtime.keep import parse_request_keep
    from foveate.runtime.media.files import open_local
    from foveate.runtime.media.pictures import find_pictures, open_pictures
    from foveate.runtime.media.video import VideoFile, VideoWarning, check_options, read_frames

    wanted = None if keep is None else parse_request_keep(keep)
    sources = [_image_source(image, images) for image in images]
    opening = {name: how.pop(name) for name in LOADING}
    most = opening["max_picture_pixels"]
    # Headers say early what is no picture; pixels are decoded here only to be drawn on.
    list(find_pictures(sources, max_pixels=most))
    pictures = [] if heatmap is None else open_pictures(sources, max_pixels=most)
    media: dict[str, Any] = {"images": sources or None}
    if video is not None:
        media["video"] = VideoFile(video, fps, frames, start, end)
        check_options(media["video"])
        open_local(video).close()
    elif (fps, frames, start, end) != (None, None, 0.0, None):
        raise click.UsageError(
            "--fps, --frames, --start and --end are a video's; give --video FILE"
        )
    if heatmap is not None:
        check_target(heatmap, force=force)
        _check_ranking(bundle, wanted)
    with _warnings_as_notes(), Pipeline.load(bundle, **opening) as pipe:
        if pipe.bundle.manifest.weights == "random":
            note(f"{bundle}: its weights are random, so that the answer means nothing")
        how |= {"keep": wanted, "skip_special_tokens": not keep_marks}
        stream = pipe.stream(asked(prompt, system, len(images)), **media, **how)
        rule = pipe.frame_rule
        answer = _read(stream, None if as_json else functools.partial(tell, newline=False))
    if heatmap is not None:
        if not answer.visual.kept:
            raise LimitError(
                f"the deadline passed before the first token, so that {heatmap} was not drawn; give "
                "--deadline more seconds, or leave it out"
            )
        if video is None:
            write_heatmap(heatmap, pictures, answer.visual, force=force)
        else:
            with warnings.catch_warnings():
                # They were shown when the frames were decoded to be asked about.
                warnings.simplefilter("ignore", VideoWarning)
                found = read_frames(media["video"], rule=rule, max_pixels=FRAME_PIXELS)
            drawn = found.pictures, answer.visual, found.seconds
            write_contact_sheet(heatmap, *drawn, prompt, force=force)
    if as_json:
        tell_json(answer_facts(answer))
    note(describe_answer(answer))


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Show warnings about videos as remarks on standard error, without a file name and line."""
    from foveate.runtime.media.video import VideoWarning

    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            """Show one."""
            if issubclass(category, VideoWarning):
                note(str(message))
            else:
                usual(message, category, *where)

        warnings.showwarning = show  # type: ignore[assignment]
        warnings.simplefilter("always", VideoWarning)
        yield


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
    if sys.stdin is None:
        raise ImageError("standard input is closed; give a picture's file, --image FILE")
    return sys.stdin.buffer.read()


def _check_ranking(bundle: Path, wanted: Keep | None) -> None:
    """KeepError where all tokens would be kept, since none are ranked then."""
    if wanted is None:
        wanted = Bundle.open(bundle, checksums=False).manifest.compressor.keep
    if wanted == 1:
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
    if not visual.kept:
        return (
            f"the deadline passed before the first token, in {duration(timing.total)}\n({stages})"
        )
    ending = ENDINGS.get(answer.finish_reason, "")
    always = f" ({visual.always} of them always)" if visual.always else ""
    return (
        f"kept {visual.kept} of {visual.total} visual tokens{always}; first token after "
        f"{duration(timing.first_token)}, {plural(len(answer.token_ids), 'token')}{ending} in "
        f"{duration(timing.total)}\n({stages}; KV cache {size(answer.cache_bytes)})"
    )
