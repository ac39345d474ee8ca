"""Pictures from wherever a caller has them: fully decoded, or one clear error."""

import functools
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.errors import FoveateError, ImageError
from foveate.families.base import UnopenedPicture
from foveate.families.pixels import for_each
from foveate.runtime.checks import items_of
from foveate.runtime.media.files import local_size, open_local
from foveate.runtime.media.picture_file import (
    DAMAGED,
    FORMATS,
    check_area,
    check_picture,
    decode,
    read_size,
    refusing,
    to_eight_bits,
)

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "Picture",
    "check_list",
    "find_picture",
    "find_pictures",
    "open_picture",
    "open_pictures",
    "read_file",
]

Picture = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

MAX_PIXELS = 178_956_970
"""The most pixels (width x height) of a picture, unless a caller sets another limit."""

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:")
_BYTES_A_PIXEL = 8
_HEADER_BYTES = 1 << 24
_AXES = "give uint8 [height, width], [height, width, 3] (RGB) or [height, width, 4] (RGBA)"


def open_picture(source: Picture, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Take one picture in, decoded to its last pixel.

    Files and bytes are turned upright as their EXIF orientation says; other metadata (text, colour
    profiles, EXIF that cannot be read) has no effect. PIL images and arrays are taken as they stand:
    their caller has them in hand. Grey of 16 bits comes as its high byte. Nothing is fetched from a
    network. Animations and several pages are refused, but of a phone's MPO or HEIC file the first or
    primary picture is taken, which is what other programs show.

    A host that has switched ImageFile.LOAD_TRUNCATED_IMAGES on gets errors for cut files all the
    same; damage in the middle of a JPEG or GIF, though, Pillow then hides.

    Args:
        source: A path; an encoded file's bytes; a PIL image; or an array uint8 [height, width]
            (grey), [height, width, 3] (RGB) or [height, width, 4] (RGBA, alpha not premultiplied).
        max_pixels: Most pixels (width x height) to decode; checked before decoding. Pillow's own
            global limits play no part, and are left as they are.

    Returns:
        The picture in its own mode; a PIL image comes back as the same object, loaded, unless it is
        grey of 16 bits.

    Raises:
        ImageError: No such file, not a picture, damaged, too large, animated or several pages, of a
            format not in `FORMATS`, or of numbers that are no levels; an array of another shape or
            dtype; or no memory to decode it.
        MissingDependencyError: A HEIC file, and pillow-heif is not installed.
    """
    if isinstance(source, Image.Image):
        return _load_image(source, max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), max_pixels)
    path = _path(source)
    return decode(read_file(path, max_pixels), _file_name(path), max_pixels)


def open_pictures(sources: Iterable[Picture], *, max_pixels: int = MAX_PIXELS) -> list[Image.Image]:
    """Take several pictures in, in order; see `open_picture`.

    Raises:
        ImageError: As `open_picture`, naming which of several it was; or a single picture was
            passed where a list belongs.
    """

    def take(number: int, source: Picture) -> Image.Image:
        """One picture."""
        with _numbering(number):
            return open_picture(source, max_pixels=max_pixels)

    return for_each(take, list(check_list(sources)))


def find_picture(source: Picture, *, max_pixels: int = MAX_PIXELS) -> UnopenedPicture:
    """Look at a picture's header, and leave it to be opened when its pixels are wanted.

    Raises:
        ImageError: What `open_picture` refuses, as far as the header shows it; the rest when it is opened.
        MissingDependencyError: A HEIC file, and pillow-heif is not installed.
    """
    if isinstance(source, Image.Image):
        check_picture(source, _image_name(source), max_pixels)
        size = source.size
    elif isinstance(source, np.ndarray):
        size = _array_size(source, max_pixels)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        source = bytes(source)
        size = _header(io.BytesIO(source), len(source), _bytes_name(source), max_pixels)
    else:
        path = source = _path(source)
        with _file(path, max_pixels) as file:
            size = _header(file, os.fstat(file.fileno()).st_size, _file_name(path), max_pixels)

    def open_again() -> Image.Image:
        """The pixels, of the size that was found."""
        picture = open_picture(source, max_pixels=max_pixels)
        if picture.size != size:
            raise ImageError(
                f"The picture was {size[0]} x {size[1]} pixels by its header and is {picture.width} x "
                f"{picture.height}; leave it alone while it is read, or save it again."
            )
        return picture

    return UnopenedPicture(size, open_again)


def find_pictures(
    sources: Iterable[Picture], *, max_pixels: int = MAX_PIXELS
) -> Iterator[UnopenedPicture]:
    """Look at the headers of several pictures, one after the other; see `find_picture`.

    Raises:
        ImageError: As `find_picture`, naming which of several it was; also when it is opened.
    """

    def open_numbered(number: int, found: UnopenedPicture) -> Image.Image:
        """The pixels of one."""
        with _numbering(number):
            return found.open()

    for number, source in enumerate(sources, start=1):
        with _numbering(number):
            found = find_picture(source, max_pixels=max_pixels)
        yield UnopenedPicture(found.size, functools.partial(open_numbered, number, found))


def check_list(sources: Any) -> Iterator[Picture]:
    """What may be several pictures, to be gone through once.

    Raises:
        ImageError: A single picture, or nothing that can be gone through.
    """
    single = isinstance(sources, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image))
    if single or (isinstance(sources, np.ndarray) and sources.ndim in (2, 3)):
        raise ImageError("Pictures go in a list, also when there is only one; write [picture].")
    batch = not isinstance(sources, np.ndarray) or sources.ndim == 4
    items = items_of(sources) if batch else None
    if items is None:
        raise ImageError(
            f"A {type(sources).__name__} is no list of pictures; write [picture], or pass an array "
            "uint8 [pictures, height, width, 3]."
        )
    return items


@contextmanager
def _numbering(number: int) -> Iterator[None]:
    """Say in errors which of several pictures they are about."""
    try:
        yield
    except FoveateError as error:
        raise type(error)(f"Picture {number}: {error}") from error


def _path(source: object) -> str:
    """A path as text; ImageError for what is none, or a URL."""
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(
            f"A {type(source).__name__} is no picture; pass a path, bytes, a PIL image or a uint8 array."
        )
    try:
        path = os.fsdecode(source)
    except (TypeError, ValueError) as error:
        raise ImageError(f"The path of a picture is none ({error}); pass a str.") from error
    if _URL.match(path) and not os.path.lexists(path):
        raise ImageError(
            f"{path[:80]!r} is a URL; download it first and pass the file or its bytes."
        )
    return path


def _file(path: str, max_pixels: int) -> BinaryIO:
    """A picture's file, open; ImageError for what is no file, or too large to be a picture."""
    size = local_size(
        path, folder="pass the pictures in it one by one", other="read it and pass the bytes"
    )
    if size > max_pixels * _BYTES_A_PIXEL + _HEADER_BYTES:
        raise ImageError(
            f"The file {path!r} is too large ({size} bytes) to hold a picture of at most "
            f"{max_pixels} pixels; make it smaller."
        )
    return open_local(path)


def read_file(path: str, max_pixels: int) -> bytes:
    """A picture's file; ImageError for what is no file, empty, or too large to be a picture."""
    name = _file_name(path)
    with _file(path, max_pixels) as file, refusing(name, "cannot be read", "check the path"):
        return _not_empty(file.read(), name)


def _header(file: BinaryIO, length: int, name: str, max_pixels: int) -> tuple[int, int]:
    if not length:
        _not_empty(b"", name)
    return read_size(file, name, max_pixels)


def _from_bytes(data: bytes, max_pixels: int) -> Image.Image:
    name = _bytes_name(data)
    return decode(_not_empty(data, name), name, max_pixels)


def _not_empty(data: bytes, name: str) -> bytes:
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); {DAMAGED}.")
    return data


def _file_name(path: str) -> str:
    return f"The picture {path!r}"


def _bytes_name(data: bytes) -> str:
    return f"The picture of {len(data)} bytes"


def _image_name(picture: Image.Image) -> str:
    return f"The PIL image of {picture.width} x {picture.height} pixels"


def _load_image(picture: Image.Image, max_pixels: int) -> Image.Image:
    name = _image_name(picture)
    check_picture(picture, name, max_pixels)
    with refusing(name, "cannot be loaded", "load it before its file is closed, or pass the path"):
        picture.load()
        return to_eight_bits(picture)


def _array_size(array: NDArray[np.uint8], max_pixels: int) -> tuple[int, int]:
    name = f"The array {array.dtype} {list(array.shape)}"
    if array.dtype != np.uint8:
        raise ImageError(f"{name} does not hold 8-bit levels; {_AXES}.")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(f"{name} is not laid out as a picture; {_AXES}.")
    size = array.shape[1], array.shape[0]
    check_area(size, name, max_pixels)
    return size


def _from_array(array: NDArray[np.uint8], max_pixels: int) -> Image.Image:
    size = _array_size(array, max_pixels)
    with refusing(f"The array of {size[0]} x {size[1]} pixels", "cannot be copied", "free memory"):
        return Image.fromarray(np.ascontiguousarray(array))
