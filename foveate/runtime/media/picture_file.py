"""One picture file to its size and to its pixels, turned upright."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from foveate.errors import FoveateError, ImageError, MissingDependencyError, cause
from foveate.runtime.media.png import SIGNATURE, essential

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, by Pillow's names; HEIF (.heic) by pillow-heif."""
ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")
"""Of these, formats whose files may be animations."""
DAMAGED = "save it again, or use another copy of it"
PREFIX = 64
"""Bytes of a file's beginning that tell its format."""

_AVIF = {b"avif", b"avis"}
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_EXIF_ITEM = re.compile(rb"(infe\x02.{7})Exif", re.DOTALL)
"""An entry in an AVIF file's list of items: version, flags, number, protection, and the type."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC = 256, 257, 258, 262
_WHITE_IS_ZERO = 0


def read_size(file: BinaryIO, name: str, max_pixels: int) -> tuple[int, int]:
    """Width and height of a file's picture as it is shown upright, from its header.

    Raises:
        ImageError: What the header shows to be no picture, damaged, too large, several frames, or of
            numbers that are no levels.
        MissingDependencyError: pillow-heif is needed.
    """
    with refusing(name):
        prefix = file.read(PREFIX)
        if prefix.startswith(SIGNATURE):
            file = io.BytesIO(essential(file, pixels=False))
        picture = _checked(file, prefix, name, max_pixels)
        if picture.format == "TIFF":
            # Releases of Pillow differ in whether the size is that of the picture turned upright.
            tags: Any = picture.tag_v2  # type: ignore[attr-defined]
            size, turn = (int(tags[_WIDTH]), int(tags[_LENGTH])), tags.get(_ORIENTATION)
        else:
            size, turn = picture.size, orientation(picture)
        return size[::-1] if turn in (5, 6, 7, 8) else size


def decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """A file's picture, decoded to its last pixel and turned upright.

    Raises:
        ImageError: No picture, damaged, too large, several frames, or of numbers that are no levels.
        MissingDependencyError: pillow-heif is needed.
    """
    with refusing(name):
        prefix = data[:PREFIX]
        is_png, lenient = prefix.startswith(SIGNATURE), ImageFile.LOAD_TRUNCATED_IMAGES
        if is_png:
            data = essential(io.BytesIO(data), pixels=True)
        if is_png and lenient:
            _checked(io.BytesIO(data), prefix, name, max_pixels).verify()
        stream = _Bytes(data)
        picture = _checked(stream, prefix, name, max_pixels)
        turn = orientation(picture)
        if picture.format != "HEIF":
            picture.seek(0)
        stream.overrun = False
        picture.load()
        if lenient and stream.overrun:
            raise ImageError(f"{name} is cut short; {DAMAGED}.")
        if picture.format == "TIFF":
            # Pillow has turned it while loading.
            turn = orientation(picture)
        return turned(to_eight_bits(picture), turn)


def read_header(file: BinaryIO, prefix: bytes, name: str, max_pixels: int) -> ImageFile.ImageFile:
    """A file's picture or animation, not decoded yet and at its first frame.

    Args:
        file: Of any format in `FORMATS`.
        prefix: Its first `PREFIX` bytes.
        name: What errors call it.
        max_pixels: The most pixels of a frame.

    Raises:
        ImageError: No picture, too large, or of numbers that are no levels.
        MissingDependencyError: pillow-heif is needed.
    """
    factory = _factory(prefix, name)
    file.seek(0)
    picture: ImageFile.ImageFile = factory(file, "")
    check_picture(picture, name, max_pixels)
    return picture


def is_animation(picture: Image.Image) -> bool:
    """Whether a file's frames follow each other in time; pages, and a phone's several pictures, do not."""
    return picture.format in ANIMATED and bool(getattr(picture, "is_animated", False))


def may_move(prefix: bytes) -> bool:
    """Whether a file that begins so is of a format that holds animations."""
    return (
        prefix.startswith((b"GIF8", SIGNATURE))
        or (prefix.startswith(b"RIFF") and prefix[8:12] == b"WEBP")
        or b"avis" in _brands(prefix)
    )


def turned(picture: Image.Image, turn: int) -> Image.Image:
    """A picture turned upright, by EXIF's number."""
    return picture.transpose(_TURNS[turn]) if turn in _TURNS else picture


def orientation(picture: Image.Image) -> int:
    """How a picture has to be turned, in EXIF's numbers; 1, which is not at all, where EXIF is none."""
    try:
        # A PNG's own method would decode its pixels.
        found = Image.Image.getexif(picture).get(_ORIENTATION)
    except Exception:
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def check_picture(picture: Image.Image, name: str, max_pixels: int) -> None:
    """ImageError for a picture without pixels, too large, or of numbers that are no levels."""
    check_area(picture.size, name, max_pixels)
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PPM"):
        kind = "floating-point numbers" if picture.mode == "F" else "32-bit numbers"
        raise ImageError(
            f"{name} holds {kind} (mode {picture.mode}), and nothing says which of them are black and "
            "white; scale them to 0 to 255 and save them as 8 bits a channel."
        )


def check_area(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """ImageError for a picture without pixels or too large."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}); {DAMAGED}.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, over the limit of {max_pixels}; make it smaller, or "
            "raise the limit (max_picture_pixels, --max-picture-pixels)."
        )


def to_eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits by its high byte, as Pillow itself takes 16-bit colour; others as they are."""
    if not (picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM")):
        return picture
    tags: Any = getattr(picture, "tag_v2", {})
    values = np.asarray(picture).astype(np.uint16)
    bits = tags.get(_BITS, (16,))[0]
    levels = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = 255 - levels
    hidden = picture.info.get("transparency")
    if isinstance(hidden, int):
        alpha = np.where(values == hidden, 0, 255).astype(np.uint8)
        return Image.fromarray(np.stack([levels, alpha], axis=-1))
    return Image.fromarray(levels)


@contextmanager
def refusing(
    name: str, fault: str = "is cut short or damaged", fix: str = DAMAGED
) -> Iterator[None]:
    """Make every error of a decoder an ImageError about the picture `name`."""
    try:
        yield
    except FoveateError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{name} takes more memory to decode than there is; make it smaller, or free memory."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels ({error}); make it smaller.") from error
    except Exception as error:
        raise ImageError(f"{name} {fault} ({cause(error)}); {fix}.") from error


class _Bytes(io.BytesIO):
    """A file's bytes that remember being read past their end, as a decoder does on a cut file."""

    overrun = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.overrun = self.overrun or (not data and size != 0)
        return data


def _checked(file: BinaryIO, prefix: bytes, name: str, max_pixels: int) -> ImageFile.ImageFile:
    """A file's picture, not decoded yet, with all refused that its header shows."""
    picture = read_header(file, prefix, name, max_pixels)
    if is_animation(picture):
        raise ImageError(
            f"{name} is an animation of several frames; give it as a video (video=..., --video), or "
            "save the one frame you mean."
        )
    if picture.format == "TIFF" and getattr(picture, "is_animated", False):
        raise ImageError(f"{name} holds several pages; save the one you mean.")
    return picture


def _factory(prefix: bytes, name: str) -> Any:
    """What opens a file that begins so; Image.open would apply Pillow's global limit, by a warning.

    Of a JPEG it is Pillow's plain reader, which takes the first picture of a phone's MPO file.
    """
    Image.init()
    brands = _brands(prefix)
    if brands & _AVIF and "AVIF" not in Image.OPEN:
        raise MissingDependencyError(
            f"{name} is an AVIF file, which this Pillow does not read; pip install 'pillow>=11.3', or "
            "convert it to PNG or JPEG."
        )
    if brands & _HEIF and not brands & _AVIF:
        return _heif_factory(name)
    for form in FORMATS:
        factory, accepts = Image.OPEN.get(form, (None, None))
        if factory is not None and (accepts is None or accepts(prefix) is True):
            if form == "AVIF":
                return lambda file, path: factory(io.BytesIO(_without_exif(file.read())), path)
            return JpegImageFile if form == "JPEG" else factory
    raise ImageError(
        f"{name} is in no format that is read here ({', '.join(FORMATS)}); convert it to PNG or JPEG."
    )


def _without_exif(data: bytes) -> bytes:
    """An AVIF file whose EXIF is called free space, for its decoder would refuse an odd one.

    How the picture is turned stands elsewhere in the file.
    """
    return _EXIF_ITEM.sub(rb"\1free", data, count=8)


def _brands(prefix: bytes) -> set[bytes]:
    """What the head of an ISO media file says that it is; nothing of other files."""
    if prefix[4:8] != b"ftyp":
        return set()
    head = prefix[8 : int.from_bytes(prefix[:4], "big")]
    return {head[place : place + 4] for place in range(0, len(head), 4) if place != 4}


def _heif_factory(name: str) -> Any:
    """The reader of HEIC files, used here alone: registering it would change Pillow for the whole process."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} is a HEIC file, which needs pillow-heif: pip install 'foveate[heic]', or convert it "
            "to PNG or JPEG."
        ) from error
    return HeifImageFile
