"""Pictures and files that tests of picture intake make, and how a source is refused."""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from foveate.errors import FoveateError, ImageError
from foveate.runtime.media.pictures import open_picture

LOSSLESS = {
    "PNG": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "PPM": {},
    "WEBP": {"lossless": True},
}
LOSSY: dict[str, dict[str, Any]] = {"JPEG": {}, "MPO": {}, "AVIF": {}, "GIF": {}}


def smooth(height: int = 40, width: int = 60) -> Image.Image:
    """An RGB picture without sharp edges, every pixel of its own colour."""
    rows, columns = np.mgrid[:height, :width]
    levels = np.stack([rows * 4, columns * 4, (rows + columns) * 2], axis=-1)
    return Image.fromarray(levels.astype(np.uint8))


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def animation(form: str) -> bytes:
    """Two unequal frames."""
    return encoded(
        smooth(), form, save_all=True, append_images=[ImageOps.invert(smooth())], duration=100
    )


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds nothing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body
    start += struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(b"")
    return start + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


def refused(source: Any, *words: str, **options: Any) -> str:
    """Check that a source gives one ImageError of one sentence with these words; return it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FoveateError) as caught:
            open_picture(source, **options)
    message = str(caught.value)
    assert type(caught.value) is ImageError
    assert message.endswith(".")
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message
