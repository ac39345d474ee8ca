"""What a request is about: pictures, or a video's frames or file, opened."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL.Image import Image

from foveate.errors import ImageError, LimitError
from foveate.families.base import Family, Medium, Video
from foveate.families.pixels import for_each
from foveate.runtime.media.pictures import Picture, open_picture, open_pictures
from foveate.runtime.media.video import VideoFile, plan_frames

VideoSource = str | os.PathLike[str] | VideoFile | Iterable[Picture]
"""A video file, or frames of one size."""


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """How many visual tokens there is room for.

    Attributes:
        most: The most.
        remedy: What makes more room, as messages say it.
    """

    most: int
    remedy: str

    def check(self, tokens: int, what: str) -> None:
        """LimitError where `what` makes more visual tokens than there is room for."""
        if tokens > self.most:
            raise LimitError(
                f"{what} make {tokens} visual tokens and {self.most} are taken; use fewer or smaller "
                f"ones, or {self.remedy}"
            )


def open_media(
    images: Iterable[Picture] | None, video: VideoSource | None, family: Family, limit: TokenLimit
) -> list[Medium]:
    """Open pictures, or the frames of a video.

    Args:
        images: Paths, bytes, PIL images or uint8 arrays.
        video: A video file; or frames of one size: a uint8 array [F, H, W, 3], or a list of what
            `images` takes.
        family: Whose frames they are to be.
        limit: Checked before a video is decoded.

    Raises:
        ImageError: Neither pictures nor a video, or both, or what cannot be read.
        LimitError: A video of more visual tokens than there is room for.
    """
    if video is not None:
        if images is not None:
            raise ImageError("images and video were given; ask about one or the other")
        if isinstance(video, (str, os.PathLike)):
            video = VideoFile(video)
        if isinstance(video, VideoFile):
            return [open_file(video, family, limit)]
        return [open_frames(video, family, limit)]
    if isinstance(images, (str, bytes, os.PathLike, Image, np.ndarray)):
        raise ImageError("images is one picture; pass a list, such as images=[picture]")
    pictures = open_pictures(images or ())
    if not pictures:
        raise ImageError("no picture was given; pass at least one, such as images=['scene.png']")
    return list(pictures)


def open_file(file: VideoFile, family: Family, limit: TokenLimit) -> Video:
    """Decode what a family takes of a video file, each frame at the size that it is to have.

    Raises:
        ImageError: No video that can be read.
        LimitError: Too many visual tokens; nothing is decoded then.
    """
    plan = plan_frames(file, family.frame_rule)
    count, film = len(plan.chosen), plan.film
    tokens = family.video_tokens(film.height, film.width, count)
    limit.check(tokens, f"{count} frames of {film.name} (fewer by fps or frames)")
    return Video(tuple(plan.pictures(lambda frame: family.fit_frame(frame, count))))


def open_frames(frames: Iterable[Picture], family: Family, limit: TokenLimit) -> Video:
    """Open a video's frames, each made as small as it is to be before the next ones are opened.

    Raises:
        ImageError: No list of frames, frames of unequal size, or one that cannot be read.
        LimitError: Too many visual tokens; only the first frame is opened then.
    """
    whole = isinstance(frames, np.ndarray) and frames.ndim == 4
    if not whole and isinstance(frames, (bytes, Image, np.ndarray)):
        raise ImageError(
            "video is no list of frames; pass a file, a uint8 array [F, H, W, 3] or a list of pictures"
        )
    sources: list[Picture] = []
    size = (1, 1)
    for source in frames:
        if not sources:
            source = _open_frame(1, source)
            size = source.size
        sources.append(source)
        tokens = family.video_tokens(size[1], size[0], len(sources))
        limit.check(tokens, f"{len(sources)} or more frames of the video")
    if not sources:
        raise ImageError("the video has no frame; pass at least one")

    def take(number: int, source: Picture) -> Image:
        """One frame, made small."""
        frame = _open_frame(number, source)
        if frame.size != size:
            raise ImageError(
                f"a video has frames of one size; frame {number} has {frame.width} x {frame.height} "
                f"pixels and the first {size[0]} x {size[1]}; resize them"
            )
        return family.fit_frame(frame, len(sources))

    return Video(tuple(for_each(take, sources)))


def _open_frame(number: int, source: Picture) -> Image:
    """A frame, by its number where it cannot be read."""
    try:
        return open_picture(source)
    except ImageError as error:
        raise ImageError(f"Picture {number}: {error}") from error
