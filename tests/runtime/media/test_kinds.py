"""Kinds of pictures that people have: what is no pixel has no effect, and pixels are those of transformers."""

import io
import struct
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin
from PIL.PngImagePlugin import PngInfo
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from foveate.errors import ImageError, MissingDependencyError
from foveate.families.pixels import to_rgb
from foveate.runtime.media.pictures import Picture, find_picture, open_picture, open_pictures
from tests.runtime.media.made import encoded, refused, smooth

NO_EXIF = b"Exif\0\0nothing of the kind"
TURNED = 6
"""EXIF's number for a quarter turn to the right."""
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind: bytes, data: bytes, before: bytes = b"IDAT") -> bytes:
    """`smooth()` as PNG with one chunk more."""
    whole = encoded(smooth())
    place = whole.index(before) - 4
    return whole[:place] + chunk(kind, data) + whole[place:]


def taken(source: Picture) -> Image.Image:
    """The picture, whose size its header tells as well."""
    opened = open_picture(source)
    assert find_picture(source).size == opened.size
    return opened


def exif(number: int = TURNED) -> bytes:
    """EXIF of an orientation."""
    made = Image.Exif()
    made[0x0112] = number
    return made.tobytes()


def globals_of_pillow() -> tuple[Any, ...]:
    """What of Pillow is the same for a whole process."""
    Image.init()
    return (
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK, *sorted(Image.OPEN),
    )  # fmt: skip


# What is no pixel

LONG = b"0123456789" * 300_000
ODD_CHUNKS: dict[str, tuple[bytes, bytes]] = {
    "compressed text": (b"zTXt", b"workflow\0\0" + zlib.compress(LONG)),
    "text of its own": (b"tEXt", b"workflow\0" + LONG),
    "international text": (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LONG)),
    "text that is damaged": (b"zTXt", b"workflow\0\0no zlib"),
    "text without an end": (b"iTXt", b"workflow"),
    "a long way to turn it": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG)),
    "a profile that unpacks to much": (b"iCCP", b"odd\0\0" + zlib.compress(LONG)),
    "a profile that is none": (b"iCCP", b"odd\0\0no zlib"),
    "exif that is none": (b"eXIf", b"nothing of the kind"),
    "exif that is empty": (b"eXIf", b""),
    "gamma of no length": (b"gAMA", b""),
    "a kind that nobody knows": (b"foVe", b"?"),
}  # fmt: skip


@pytest.mark.parametrize("place", [b"IDAT", b"IEND"], ids=["before", "after"])
@pytest.mark.parametrize("name", ODD_CHUNKS)
def test_what_stands_beside_the_pixels_of_a_png_has_no_effect(name: str, place: bytes) -> None:
    before = globals_of_pillow()
    data = with_chunk(*ODD_CHUNKS[name], place)
    assert taken(data).tobytes() == smooth().tobytes()
    assert globals_of_pillow() == before
    damaged = bytearray(data)
    damaged[data.index(b"IDAT") + 20] ^= 0xFF
    refused(bytes(damaged), "damaged")


def with_exif(form: str, data: bytes) -> bytes:
    """`smooth()` in a format with this for EXIF."""
    options = {"lossless": True} if form == "WEBP" else {}
    if form not in ("AVIF", "HEIF"):
        return encoded(smooth(), form, exif=data, **options)
    # Their writers take no EXIF that they cannot read.
    made = Image.Exif()
    made[0x010F] = "a camera of a long name, so that any of these fits"
    good = made.tobytes()[6:]
    whole = (
        encoded(smooth(), form, exif=good)
        if form == "AVIF"
        else heic(smooth(), exif=made.tobytes())
    )
    assert good in whole
    return whole.replace(good, data.removeprefix(b"Exif\0\0").ljust(len(good), b"?")[: len(good)])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG", "AVIF", "HEIF"])
@pytest.mark.parametrize("odd", [NO_EXIF, b"", exif()[:-9], b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_exif_that_is_none_has_no_effect(form: str, odd: bytes) -> None:
    plain = open_picture(with_exif(form, exif(1)))
    assert taken(with_exif(form, odd)).tobytes() == plain.tobytes()


def test_a_jpeg_with_a_damaged_list_of_pictures_is_taken() -> None:
    data = encoded(smooth(), "JPEG")
    odd = b"MPF\0MM\0*\0\0\0\x08\xff\xff" + bytes(8)
    data = data[:2] + b"\xff\xe2" + struct.pack(">H", len(odd) + 2) + odd + data[2:]
    assert taken(data).tobytes() == open_picture(encoded(smooth(), "JPEG")).tobytes()


@pytest.mark.parametrize("place", [b"IDAT", b"IEND"], ids=["before", "after"])
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"eXIf", exif()[6:]),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
        (b"zTXt", b"Raw profile type exif\0\0"
         + zlib.compress(b"\nexif\n%8d\n" % len(exif()) + exif().hex().encode())),
    ],
    ids=["EXIF", "XMP", "packed XMP", "ImageMagick"],
)  # fmt: skip
def test_a_png_is_turned_wherever_it_says_so(kind: bytes, data: bytes, place: bytes) -> None:
    opened = taken(with_chunk(kind, data, place))
    assert opened.tobytes() == smooth().transpose(Image.Transpose.ROTATE_270).tobytes()


@pytest.mark.parametrize("orientation", [0, 9, 65535, -1])
def test_orientations_that_there_are_not_turn_nothing(orientation: int) -> None:
    made = b"II*\0\x08\0\0\0\x01\0\x12\x01" + struct.pack("<HII", 9 if orientation < 0 else 3, 1,
                                                        orientation & 0xFFFFFFFF) + bytes(4)  # fmt: skip
    assert taken(encoded(smooth(), "PNG", exif=made)).tobytes() == smooth().tobytes()


def test_threads_share_no_limit() -> None:
    data = with_chunk(*ODD_CHUNKS["compressed text"])
    before = globals_of_pillow()
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(open_picture, [data] * 32))
    assert {one.tobytes() for one in opened} == {smooth().tobytes()}
    assert globals_of_pillow() == before
    # What Pillow refuses is still refused for the program around us.
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(data)).load()


def test_a_profile_of_the_monitor_has_no_effect_as_in_transformers(tmp_path: Any) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for form in ("PNG", "JPEG", "TIFF", "WEBP"):
        for embedded in (profile, b"no profile"):
            path = tmp_path / f"a.{form.lower()}"
            path.write_bytes(encoded(smooth(), form, icc_profile=embedded))
            assert taken(path).tobytes() == load_image(str(path)).tobytes()


# Modes


def cmyk() -> Image.Image:
    return smooth().convert("CMYK")


def clear_palette() -> Image.Image:
    """A palette of which two colours are clear."""
    picture = smooth().quantize(16)
    picture.info["transparency"] = bytes([0, 128] + [255] * 14)
    return picture


MODES: dict[str, tuple[Callable[[], Image.Image], str, dict[str, Any]]] = {
    "CMYK JPEG": (cmyk, "JPEG", {}),
    "CMYK TIFF": (cmyk, "TIFF", {}),
    "progressive JPEG": (smooth, "JPEG", {"progressive": True}),
    "grey JPEG": (lambda: smooth().convert("L"), "JPEG", {}),
    "1-bit PNG": (lambda: smooth().convert("1"), "PNG", {}),
    "1-bit TIFF": (lambda: smooth().convert("1"), "TIFF", {"compression": "group4"}),
    "1-bit BMP": (lambda: smooth().convert("1"), "BMP", {}),
    "palette PNG": (lambda: smooth().quantize(16), "PNG", {}),
    "palette BMP": (lambda: smooth().quantize(16), "BMP", {}),
    "YCbCr TIFF": (lambda: smooth().convert("YCbCr"), "TIFF", {}),
    "interlaced GIF": (smooth, "GIF", {"interlace": 1}),
    "clear palette PNG": (clear_palette, "PNG", {"transparency": bytes([0, 128] + [255] * 14)}),
    "clear palette GIF": (lambda: smooth().quantize(16), "GIF", {"transparency": 3}),
    "clear colour PNG": (smooth, "PNG", {"transparency": (0, 4, 2)}),
    "clear grey PNG": (lambda: smooth().convert("L"), "PNG", {"transparency": 7}),
    "RGBA WebP": (lambda: smooth().convert("RGBA").rotate(30), "WEBP", {"lossless": True}),
    "LA PNG": (lambda: smooth().convert("LA").rotate(30), "PNG", {}),
    "RGBA TIFF": (lambda: smooth().convert("RGBA").rotate(30), "TIFF", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_modes_become_rgb_as_in_transformers(name: str) -> None:
    make, form, options = MODES[name]
    data = encoded(make(), form, **options)
    theirs = convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True)
    np.testing.assert_array_equal(np.asarray(to_rgb(taken(data))), theirs)


def test_large_pictures_are_laid_on_white_strip_by_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = smooth(50, 30).convert("RGBA").rotate(20)
    whole = to_rgb(picture)
    for pixels in (1, 30, 100, 31 * 30):
        monkeypatch.setattr("foveate.families.pixels._STRIP", pixels)
        assert to_rgb(picture).tobytes() == whole.tobytes()


# HEIC and AVIF


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_as_pillow_turns_it(orientation: int) -> None:
    data = encoded(smooth(), "AVIF", exif=exif(orientation))
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert taken(data).tobytes() == theirs.tobytes()


def heic(picture: Image.Image, *others: Image.Image, **options: Any) -> bytes:
    """A HEIC file as phones write it."""
    made = pillow_heif.from_pillow(picture)
    for other in others:
        made.add_from_pillow(other)
    stream = io.BytesIO()
    made.save(stream, quality=90, **options)
    return stream.getvalue()


def test_heic_comes_in_as_pillow_heif_decodes_it(tmp_path: Any) -> None:
    data = heic(smooth())
    (tmp_path / "a.jpg").write_bytes(data)
    theirs = pillow_heif.read_heif(data).to_pillow()
    for source in (data, tmp_path / "a.jpg"):
        opened = taken(source)
        assert (opened.mode, opened.size) == ("RGB", (60, 40))
        assert opened.tobytes() == theirs.tobytes()
    assert "HEIF" not in Image.OPEN
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(data))


def test_heic_is_turned_once_and_its_primary_picture_is_taken() -> None:
    plain = open_picture(heic(smooth()))
    turned = taken(heic(smooth(), exif=exif()))
    assert turned.tobytes() == plain.transpose(Image.Transpose.ROTATE_270).tobytes()
    several = heic(smooth(), smooth(30, 30), smooth(20, 20), primary_index=1)
    assert taken(several).size == (30, 30)


def test_heic_that_is_cut_or_too_large_is_refused() -> None:
    data = heic(smooth())
    for share in (0.1, 0.5, 0.9):
        refused(data[: int(len(data) * share)], "cut short or damaged")
    refused(data, "60 x 40 pixels, over the limit of 2399", max_pixels=2399)


def test_what_reads_a_format_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF")
    for data, words in (
        (heic(smooth()), r"Picture 1: .*HEIC file, .*pip install 'foveate\[heic\]'"),
        (encoded(smooth(), "AVIF"), r"Picture 1: .*AVIF file, .*pip install 'pillow>=11\.3'"),
    ):
        with pytest.raises(MissingDependencyError, match=words):
            open_pictures([data])


# From header to pixels


def test_a_file_that_changes_between_header_and_pixels_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(smooth()))
    found = find_picture(path)
    assert found.open().tobytes() == smooth().tobytes()
    path.write_bytes(encoded(smooth(30, 30)))
    with pytest.raises(ImageError, match="was 60 x 40 pixels by its header and is 30 x 30"):
        found.open()
    path.unlink()
    with pytest.raises(ImageError, match="There is no file"):
        found.open()


def test_a_png_is_as_it_was_with_nothing_beside_its_pixels() -> None:
    info = PngInfo()
    info.add_text("a", "b")
    data = encoded(smooth(), pnginfo=info, dpi=(72, 72)) + b"what else was in the file" * 100
    assert taken(data).info == {}
