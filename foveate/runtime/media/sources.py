"""What a request is about: pictures or a video's frames, by their headers."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from foveate.errors import ImageError
from foveate.families.base import Medium, UnopenedPicture, Video
from foveate.runtime.media.animation import find_animation
from foveate.runtime.media.pictures import MAX_PIXELS, Picture, check_list, find_pictures


def open_media(
    images: Iterable[Picture] | None,
    video: Iterable[Picture] | None,
    *,
    max_pixels: int = MAX_PIXELS,
    check: Callable[[Sequence[Medium]], object] = len,
) -> list[Medium]:
    """Look at pictures, or at the frames of a video; pixels are decoded when they are wanted.

    Args:
        images: Paths, bytes, PIL images or uint8 arrays.
        video: Frames of one size: a uint8 array [F, H, W, 3], a list of what `images` takes, or an
            animated picture's path or bytes.
        max_pixels: The most pixels of each.
        check: Called with the media of so far as they double in number, to refuse what is too much
            before the rest is looked at, of which there may be no end.

    Raises:
        ImageError: Neither pictures nor a video, or both, or what cannot be read.
    """
    if video is not None:
        if images is not None:
            raise ImageError("images and video were given; ask about one or the other")
        frames = find_pictures(_frames(check_video(video), max_pixels), max_pixels=max_pixels)
        found = _gather(frames, lambda several: check([Video(tuple(several))]))
        if not found:
            raise ImageError("the video has no frame; pass at least one")
        return [Video(tuple(found))]
    sources = () if images is None else check_pictures(images)
    pictures = _gather(find_pictures(sources, max_pixels=max_pixels), check)
    if not pictures:
        raise ImageError("no picture was given; pass at least one, such as images=['scene.png']")
    return list(pictures)


def check_pictures(images: Any) -> Iterable[Picture]:
    """`images` as it stands; ImageError for what is no list."""
    if isinstance(images, (str, bytes, os.PathLike, Image)) or (
        isinstance(images, np.ndarray) and images.ndim in (2, 3)
    ):
        raise ImageError("images is one picture; pass a list, such as images=[picture]")
    return check_list(images)


def check_video(video: Any) -> Any:
    """`video` as it stands; ImageError for what is neither frames nor may be an animated picture."""
    if isinstance(video, (str, bytes, os.PathLike)):
        return video
    whole = isinstance(video, np.ndarray) and video.ndim == 4
    if not whole and isinstance(video, (Image, np.ndarray)):
        raise ImageError(
            "video is no list of frames; pass a uint8 array [F, H, W, 3] or a list of pictures"
        )
    return video if whole else check_list(video)


def _frames(video: Any, max_pixels: int) -> Iterable[Picture]:
    """The frames of a video as they were given, or of an animated picture."""
    if not isinstance(video, (str, bytes, os.PathLike)):
        return check_list(video)
    animation = find_animation(video, max_pixels=max_pixels)
    if animation is None:
        raise ImageError(
            "video is no list of frames, and no animated picture; pass a uint8 array [F, H, W, 3], a list "
            "of pictures, or an animated GIF, PNG, WebP or AVIF file"
        )
    return animation.pictures(animation.choose())


def _gather(
    pictures: Iterable[UnopenedPicture], check: Callable[[Sequence[UnopenedPicture]], object]
) -> list[UnopenedPicture]:
    """All pictures, checked as they double in number."""
    found: list[UnopenedPicture] = []
    for picture in pictures:
        found.append(picture)
        if len(found) & (len(found) - 1) == 0:
            check(found)
    return found
