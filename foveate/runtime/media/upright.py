"""A decoded frame as an RGB picture, turned as its file says."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from foveate.errors import ImageError
from foveate.families.pixels import to_rgb

if TYPE_CHECKING:
    from av import VideoFrame


def upright(frame: VideoFrame) -> Image.Image:
    """The frame as it is to be seen: RGB, laid on white where it is transparent, turned and mirrored.

    Raises:
        ImageError: Pixels that cannot be made RGB.
    """
    clear = any(component.is_alpha for component in frame.format.components)
    try:
        levels = frame.to_ndarray(format="rgba" if clear else "rgb24")
    except Exception as error:
        raise ImageError(
            f"a frame of {frame.width} x {frame.height} pixels in {frame.format.name} cannot be made "
            f"RGB ({error or type(error).__name__}); convert the video to H.264 or VP9"
        ) from error
    picture = to_rgb(Image.fromarray(levels))
    for way in ways(matrix_of(frame)):
        picture = picture.transpose(way)
    return picture


def matrix_of(frame: VideoFrame) -> tuple[int, ...]:
    """The frame's display matrix, nine numbers row by row; that of an upright one where it has none."""
    from av.sidedata.sidedata import Type

    found = cast(Any, frame.side_data).get(Type.DISPLAYMATRIX)
    if found is None or len(bytes(found)) != 36:
        return (1, 0, 0, 0, 1, 0, 0, 0, 1)
    return struct.unpack("=9i", bytes(found))


def ways(matrix: tuple[int, ...]) -> tuple[Image.Transpose, ...]:
    """The transpositions, one after the other, that come nearest to a display matrix.

    A point (x, y) of the frame is shown at (a·x + c·y, b·x + d·y) of the matrix (a, b, ·, c, d, ·, …).
    """
    a, b, _, c, d = matrix[:5]
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if turned else (a, d)
    return (
        *((Image.Transpose.TRANSPOSE,) if turned else ()),
        *((Image.Transpose.FLIP_LEFT_RIGHT,) if across < 0 else ()),
        *((Image.Transpose.FLIP_TOP_BOTTOM,) if down < 0 else ()),
    )
