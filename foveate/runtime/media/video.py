"""A video file to frames, evenly apart in time."""

import os
from pathlib import Path
from typing import Any, cast

from PIL.Image import Image

from foveate.errors import ImageError, MissingDependencyError
from foveate.runtime.media.animation import find_animation

FPS = 2.0
"""Frames a second, as the families' own processors take them."""
MOST_FRAMES = 768


def read_video(path: str | os.PathLike[str], fps: float = FPS) -> list[Image]:
    """Decode a video's frames, each the first at or after its time, turned as the file says.

    Args:
        path: The file.
        fps: Frames wanted for each second; one is the least that comes.

    Returns:
        RGB pictures of one size.

    Raises:
        ImageError: No video that can be read, or more frames than `MOST_FRAMES`.
        MissingDependencyError: PyAV is not installed.
    """
    if not fps > 0:
        raise ImageError(f"{fps} frames a second were asked for; give more than 0")
    animation = find_animation(path)
    if animation is not None:
        return animation.pictures(animation.choose(fps))
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            "reading videos needs PyAV, which is not installed: pip install 'foveate[video]'"
        ) from error
    frames: list[Image] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ImageError(f"{path} holds no video; give a file that does")
            for frame in container.decode(container.streams.video[0]):
                if frame.time is not None and frame.time < len(frames) / fps:
                    continue
                if len(frames) == MOST_FRAMES:
                    raise ImageError(
                        f"{path} has more than {MOST_FRAMES} frames at {fps:g} a second; take fewer "
                        "(--fps), or cut it"
                    )
                picture: Image = cast(Any, frame).to_image()
                turn = getattr(frame, "rotation", 0)
                frames.append(picture.rotate(turn, expand=True) if turn else picture)
    except (av.FFmpegError, OSError) as error:
        raise ImageError(f"{Path(path)} cannot be read as a video: {error}") from error
    if not frames:
        raise ImageError(f"{path} has no frame that can be decoded")
    return frames
