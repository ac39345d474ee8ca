"""What a request is about: pictures, or a video's frames or file, by their headers."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from foveate.errors import ImageError, LimitError
from foveate.families.base import Family, Medium, UnopenedPicture, Video
from foveate.runtime.media.animation import find_animation
from foveate.runtime.media.pictures import MAX_PIXELS, Picture, check_list, find_pictures
from foveate.runtime.media.video import VideoFile, check_options, choose, plan_frames

VideoSource = str | os.PathLike[str] | bytes | VideoFile | Iterable[Picture]
"""A video file, an animated picture's bytes, or frames of one size."""
Check = Callable[[Sequence[Medium]], object]
"""Refuses media that are too much, by their sizes."""


def open_media(
    images: Iterable[Picture] | None,
    video: VideoSource | None,
    family: Family,
    *,
    max_pixels: int = MAX_PIXELS,
    check: Check = len,
) -> list[Medium]:
    """Look at pictures, or at the frames of a video; pixels are decoded when they are wanted.

    Args:
        images: Paths, bytes, PIL images or uint8 arrays.
        video: A video file or an animated picture; or frames of one size: a uint8 array
            [F, H, W, 3], or a list of what `images` takes.
        family: Whose frames they are to be.
        max_pixels: The most pixels of each.
        check: Called before a video file is decoded, and with pictures and frames of so far as they
            double in number, to refuse what is too much before the rest is looked at.

    Raises:
        ImageError: Neither pictures nor a video, or both, or what cannot be read.
    """
    if video is not None:
        if images is not None:
            raise ImageError("images and video were given; ask about one or the other")
        if isinstance(video, (str, os.PathLike)):
            video = VideoFile(video)
        if isinstance(video, (bytes, VideoFile)):
            return [open_file(video, family, max_pixels, check)]
        frames = find_pictures(check_frames(video), max_pixels=max_pixels)
        found = _gather(frames, lambda several: check([Video(tuple(several))]))
        if not found:
            raise ImageError("the video has no frame; pass at least one")
        return [Video(tuple(found))]
    sources = () if images is None else check_pictures(images)
    pictures = _gather(find_pictures(sources, max_pixels=max_pixels), check)
    if not pictures:
        raise ImageError("no picture was given; pass at least one, such as images=['scene.png']")
    return list(pictures)


def open_file(source: VideoFile | bytes, family: Family, max_pixels: int, check: Check) -> Video:
    """What a family takes of a video file or an animated picture, each frame at the size that it is to have.

    Raises:
        ImageError: No video that can be read.
        LimitError: `check` refuses its frames; none is decoded then.
    """
    rule = family.frame_rule
    file = VideoFile("") if isinstance(source, bytes) else source
    data = source if isinstance(source, bytes) else file.path
    check_options(file)
    animation = find_animation(data, max_pixels=max_pixels)
    if animation is not None:
        chosen = choose(file, animation.times, rule, animation.name)
        check([Video((UnopenedPicture(animation.size, _never),) * len(chosen))])
        return Video(tuple(animation.pictures(chosen)))
    if isinstance(source, bytes):
        raise ImageError("the bytes of the video are no animated picture; pass a video as a file")
    plan = plan_frames(file, rule)
    count, film = len(plan.chosen), plan.film
    try:
        check([Video((UnopenedPicture((film.width, film.height), _never),) * count)])
    except LimitError as error:
        raise LimitError(
            f"{count} frames of {film.name}: {error}; or take fewer of them (fps or frames)"
        ) from error
    return Video(tuple(plan.pictures(lambda frame: family.fit_frame(frame, count))))


def _never() -> Image:
    """Stands for a frame that is counted and not decoded."""
    raise AssertionError


def check_pictures(images: Any) -> Iterable[Picture]:
    """`images` as it stands; ImageError for what is no list."""
    if isinstance(images, (str, bytes, os.PathLike, Image)) or (
        isinstance(images, np.ndarray) and images.ndim in (2, 3)
    ):
        raise ImageError("images is one picture; pass a list, such as images=[picture]")
    return check_list(images)


def check_video(video: Any) -> Any:
    """`video` as it stands; ImageError for what is no video."""
    if isinstance(video, (str, bytes, os.PathLike, VideoFile)):
        return video
    return check_frames(video)


def check_frames(video: Any) -> Iterable[Picture]:
    """The frames of a video as they were given; ImageError for what is no list of them."""
    whole = isinstance(video, np.ndarray) and video.ndim == 4
    if not whole and isinstance(video, (Image, np.ndarray)):
        raise ImageError(
            "video is no list of frames; pass a file, a uint8 array [F, H, W, 3] or a list of pictures"
        )
    return check_list(video)


def _gather(
    pictures: Iterable[UnopenedPicture], check: Callable[[Sequence[UnopenedPicture]], object]
) -> list[UnopenedPicture]:
    """All pictures, checked as they double in number."""
    found: list[UnopenedPicture] = []
    for picture in pictures:
        found.append(picture)
        if due(len(found)):
            check(found)
    return found


def due(count: int) -> bool:
    """Whether a list that has grown to `count` is checked again: as it doubles, so that checks stay cheap."""
    return count & (count - 1) == 0
