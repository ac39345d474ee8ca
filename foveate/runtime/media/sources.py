"""What a request is about: pictures or a video's frames, opened."""

import os
from collections.abc import Iterable

import numpy as np
from PIL.Image import Image

from foveate.errors import ImageError
from foveate.families.base import Medium, Video
from foveate.runtime.media.pictures import Picture, open_pictures


def open_media(images: Iterable[Picture] | None, video: Iterable[Picture] | None) -> list[Medium]:
    """Open pictures, or the frames of a video.

    Args:
        images: Paths, bytes, PIL images or uint8 arrays.
        video: Frames of one size: a uint8 array [F, H, W, 3], or a list of what `images` takes.

    Raises:
        ImageError: Neither pictures nor a video, or both, or what cannot be read.
    """
    if video is not None:
        if images is not None:
            raise ImageError("images and video were given; ask about one or the other")
        whole = isinstance(video, np.ndarray) and video.ndim == 4
        if not whole and isinstance(video, (str, bytes, os.PathLike, Image, np.ndarray)):
            raise ImageError(
                "video is no list of frames; pass a uint8 array [F, H, W, 3] or a list of pictures"
            )
        frames = open_pictures(video)
        if not frames:
            raise ImageError("the video has no frame; pass at least one")
        return [Video(tuple(frames))]
    pictures = open_pictures(listed(images))
    if not pictures:
        raise ImageError("no picture was given; pass at least one, such as images=['scene.png']")
    return list(pictures)


def listed(images: Iterable[Picture] | None) -> Iterable[Picture]:
    """Pictures as they were given, none for None; ImageError for one that is no list of them."""
    if isinstance(images, (str, bytes, os.PathLike, Image, np.ndarray)):
        raise ImageError("images is one picture; pass a list, such as images=[picture]")
    return () if images is None else images
