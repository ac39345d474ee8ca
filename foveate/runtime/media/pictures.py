"""Pictures from wherever a caller has them: fully decoded, or one clear error."""

import io
import os
import re
import stat
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from foveate.errors import ImageError
from foveate.families.pixels import for_each

Picture = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

MAX_PIXELS = 178_956_970
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:")
_BYTES_A_PIXEL = 8
_HEADER_BYTES = 1 << 24
_DAMAGED = "save it again, or use another copy of it"
_AXES = "give uint8 [height, width], [height, width, 3] (RGB) or [height, width, 4] (RGBA)"


def open_picture(source: Picture, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Take one picture in, decoded to its last pixel.

    Files and bytes are turned upright as their EXIF orientation says. PIL images and arrays are
    taken as they stand: their caller has them in hand. Nothing is fetched from a network.
    Animations and several pages are refused, but of a phone's MPO file (a JPEG with more behind it)
    the first picture is taken, which is what other programs show.

    A host that has switched ImageFile.LOAD_TRUNCATED_IMAGES on gets errors for cut files all the
    same; damage in the middle of a JPEG or GIF, though, Pillow then hides.

    Args:
        source: A path; an encoded file's bytes; a PIL image; or an array uint8 [height, width]
            (grey), [height, width, 3] (RGB) or [height, width, 4] (RGBA, alpha not premultiplied).
        max_pixels: Most pixels (width x height) to decode; checked before decoding. Pillow's own
            global limit plays no part, and is left as it is.

    Returns:
        The picture in its own mode; a PIL image comes back as the same object, loaded.

    Raises:
        ImageError: No such file, not a picture, damaged, too large, animated or several pages, or
            of a format not in `FORMATS`, or grey with over 8 bits; or an array of another shape or dtype.
    """
    if isinstance(source, Image.Image):
        return _load_image(source, max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return _decode(data, f"The picture of {len(data)} bytes", max_pixels)
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        return _decode(_read(path, max_pixels), f"The picture {path!r}", max_pixels)
    raise ImageError(
        f"A {type(source).__name__} is no picture; pass a path, bytes, a PIL image or a uint8 array."
    )


def open_pictures(sources: Iterable[Picture], *, max_pixels: int = MAX_PIXELS) -> list[Image.Image]:
    """Take several pictures in, in order; see `open_picture`.

    Raises:
        ImageError: As `open_picture`, naming which of several it was; or a single picture was
            passed where a list belongs.
    """
    single = isinstance(sources, (str, bytes, bytearray, os.PathLike, Image.Image))
    if single or (isinstance(sources, np.ndarray) and sources.ndim < 4):
        raise ImageError("Pictures go in a list, also when there is only one; write [picture].")

    def take(number: int, source: Picture) -> Image.Image:
        """One picture."""
        try:
            return open_picture(source, max_pixels=max_pixels)
        except ImageError as error:
            raise ImageError(f"Picture {number}: {error}") from error

    return for_each(take, list(sources))


class _Bytes(io.BytesIO):
    """A file's bytes that remember being read past their end, as a decoder does on a cut file."""

    overrun = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.overrun = self.overrun or (not data and size != 0)
        return data


def _read(path: str, max_pixels: int) -> bytes:
    if _URL.match(path):
        raise ImageError(
            f"{path[:80]!r} is a URL; download it first and pass the file or its bytes."
        )
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path!r} is a folder; pass the pictures in it one by one.")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path!r} is no regular file; read it and pass the bytes.")
        if status.st_size > max_pixels * _BYTES_A_PIXEL + _HEADER_BYTES:
            raise ImageError(
                f"The file {path!r} is too large ({status.st_size} bytes) to hold a picture of at "
                f"most {max_pixels} pixels; make it smaller."
            )
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {path!r}; check the path.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"The file {path!r} cannot be read ({reason}); check the path.") from error


def _decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); {_DAMAGED}.")
    stream = _Bytes(data)
    try:
        picture = _identify(stream, data[:16])
        if picture is None:
            raise ImageError(
                f"{name} is in no format that is read here ({', '.join(FORMATS)}); "
                "convert it to PNG or JPEG."
            )
        _check(picture, name, max_pixels)
        if picture.format != "MPO" and getattr(picture, "is_animated", False):
            raise ImageError(f"{name} holds several frames or pages; save the one you mean.")
        if ImageFile.LOAD_TRUNCATED_IMAGES and picture.format == "PNG":
            _verify(data)
        picture.seek(0)
        stream.overrun = False
        picture.load()
        if ImageFile.LOAD_TRUNCATED_IMAGES and stream.overrun:
            raise ImageError(f"{name} is cut short; {_DAMAGED}.")
        ImageOps.exif_transpose(picture, in_place=True)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels ({error}); make it smaller.") from error
    except Exception as error:
        raise ImageError(
            f"{name} is cut short or damaged ({_cause(error)}); {_DAMAGED}."
        ) from error
    return picture


def _identify(stream: io.BytesIO, prefix: bytes) -> ImageFile.ImageFile | None:
    """Read the header only. Image.open would apply Pillow's global size limit, by a warning."""
    Image.init()
    for name in FORMATS:
        if name not in Image.OPEN:
            continue
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(prefix) is True:
            stream.seek(0)
            return factory(stream, "")
    return None


def _verify(data: bytes) -> None:
    picture = _identify(io.BytesIO(data), data[:16])
    if picture is not None:
        picture.verify()


def _load_image(picture: Image.Image, max_pixels: int) -> Image.Image:
    name = f"The PIL image of {picture.width} x {picture.height} pixels"
    _check(picture, name, max_pixels)
    try:
        picture.load()
    except Exception as error:
        raise ImageError(
            f"{name} cannot be loaded ({_cause(error)}); load it before its file is closed, "
            "or pass the path."
        ) from error
    return picture


def _from_array(array: NDArray[np.uint8], max_pixels: int) -> Image.Image:
    name = f"The array {array.dtype} {list(array.shape)}"
    if array.dtype != np.uint8:
        raise ImageError(f"{name} does not hold 8-bit levels; {_AXES}.")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(f"{name} is not laid out as a picture; {_AXES}.")
    _check_area((array.shape[1], array.shape[0]), name, max_pixels)
    return Image.fromarray(np.ascontiguousarray(array))


def _check(picture: Image.Image, name: str, max_pixels: int) -> None:
    _check_area(picture.size, name, max_pixels)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        raise ImageError(
            f"{name} has more than 8 bits a channel (mode {picture.mode}), which making it RGB would "
            "clip at 255; scale it to 8 bits first."
        )


def _check_area(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}); {_DAMAGED}.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, over the limit of {max_pixels}; make it "
            "smaller or raise max_pixels."
        )


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
