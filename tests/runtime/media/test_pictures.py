"""Picture intake: what comes in comes in whole, and what cannot gives one clear error."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from foveate.errors import ImageError
from foveate.families.pixels import to_rgb
from foveate.runtime.media.pictures import (
    MAX_PIXELS,
    find_picture,
    open_picture,
    open_pictures,
)
from tests.runtime.media.made import (
    LOSSLESS,
    LOSSY,
    animation,
    encoded,
    png_header,
    refused,
    smooth,
)


@pytest.mark.parametrize("way", ["str", "Path", "bytes", "bytearray", "memoryview"])
@pytest.mark.parametrize("form", LOSSLESS)
def test_a_file_comes_in_to_the_last_pixel(form: str, way: str, tmp_path: Path) -> None:
    data = encoded(smooth(), form, **LOSSLESS[form])
    file = tmp_path / "a picture.bin"
    file.write_bytes(data)
    source = {
        "str": str(file),
        "Path": file,
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
    }[way]
    opened = open_picture(source)
    file.unlink()
    assert opened.tobytes() == smooth().tobytes()
    assert (opened.mode, opened.size) == ("RGB", (60, 40))


@pytest.mark.parametrize("form", LOSSY)
def test_other_formats_come_in_as_pillow_decodes_them(form: str) -> None:
    if form not in Image.SAVE:
        Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    data = encoded(smooth(), form)
    theirs = Image.open(io.BytesIO(data))
    theirs.load()
    ours = open_picture(data)
    assert (ours.mode, ours.size) == (theirs.mode, theirs.size)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_files_are_turned_upright(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(), form, exif=exif)
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    ours = open_picture(data)
    assert ours.size == ((40, 60) if orientation > 4 else (60, 40))
    assert ours.size == theirs.size
    assert ours.tobytes() == theirs.tobytes()


def test_pil_images_are_taken_as_they_stand() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lazy = Image.open(io.BytesIO(encoded(smooth(), "PNG", exif=exif)))
    assert open_picture(lazy) is lazy
    assert lazy.tobytes() == smooth().tobytes()


def test_a_pil_image_keeps_its_frame() -> None:
    film = Image.open(io.BytesIO(animation("WEBP")))
    film.seek(1)
    there = film.copy().tobytes()
    assert open_picture(film).tobytes() == there


@pytest.mark.parametrize(("channels", "mode"), [(0, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("view", [False, True])
def test_arrays_come_in(channels: int, mode: str, view: bool) -> None:
    shape = (7, 5, channels) if channels else (7, 5)
    levels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    levels = levels[::-1, ::2] if view else levels
    opened = open_picture(levels)
    assert opened.mode == mode
    np.testing.assert_array_equal(np.asarray(opened), levels)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 3)), "float64 [4, 4, 3] does not hold 8-bit levels"),
        (np.zeros((4, 4, 3), np.uint16), "uint16 [4, 4, 3]"),
        (np.zeros((4, 4), bool), "bool [4, 4]"),
        (np.zeros((4, 4, 3), object), "object [4, 4, 3]"),
        (np.zeros((3, 40, 50), np.uint8), "[3, 40, 50] is not laid out as a picture"),
        (np.zeros((4, 4, 1), np.uint8), "[4, 4, 1]"),
        (np.zeros((4, 4, 2), np.uint8), "[4, 4, 2]"),
        (np.zeros((1, 4, 4, 3), np.uint8), "[1, 4, 4, 3]"),
        (np.zeros(4, np.uint8), "[4]"),
        (np.zeros((), np.uint8), "uint8 []"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels (4 x 0)"),
        (np.zeros((4, 0), np.uint8), "has no pixels (0 x 4)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_arrays_are_refused(array: Any, words: str) -> None:
    refused(array, words)


@pytest.mark.parametrize("source", [None, 3, 2.5, ["a.png"], {"image": "a.png"}, object()], ids=str)
def test_what_is_no_source_is_refused(source: Any) -> None:
    refused(source, type(source).__name__, "pass a path")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing.png", "no file 'missing.png'"),
        ("", "no file ''"),
        ("no/such/folder/a.png", "no file"),
        (".", "is a folder"),
        ("a\0b.png", "cannot be read"),
        ("a" * 5000, "cannot be read"),
        ("\ud800.png", "png"),
        ("a.png/b.png", "a.png/b.png"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_paths_that_lead_to_no_file_are_refused(
    path: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(smooth()))
    refused(path, words)
    if path and "\0" not in path:
        refused(Path(path), words)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "HTTP://x/a",
        "file:///a.png",
        "s3://b/a.png",
        "data:image/png;base64,AA",
    ],
)
def test_urls_are_refused(url: str) -> None:
    refused(url, url, "download it first")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no regular file")


def test_a_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(smooth()))

    def deny(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("builtins.open", deny)
    refused(file, "a.png", "Permission denied")


def test_a_file_too_large_to_be_a_picture_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "disk.img"
    with file.open("wb") as stream:
        stream.truncate(1 << 25)
    monkeypatch.setattr("builtins.open", None)
    refused(file, "too large", "33554432 bytes", max_pixels=1000)


@pytest.mark.parametrize(
    "error",
    [
        OSError("x"),
        SyntaxError("x"),
        struct.error("x"),
        MemoryError(),
        KeyError("x"),
        ValueError("x"),
        RecursionError("x"),
        UserWarning("x"),
        Image.DecompressionBombError("x"),
        zlib.error("x"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("stage", ["header", "pixels"])
def test_no_error_of_a_decoder_comes_through(
    error: Exception, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    Image.init()
    factory, accepts = Image.OPEN["PNG"]
    if stage == "header":
        monkeypatch.setitem(Image.OPEN, "PNG", (fail, accepts))
    else:
        monkeypatch.setattr(factory, "load", fail)
    words = ["memory"] if isinstance(error, MemoryError) else []
    refused(encoded(smooth()), "picture of", *words)
    if stage == "pixels":
        lazy = Image.open(io.BytesIO(encoded(smooth())))
        refused(lazy, "The PIL image of 60 x 40 pixels", *words)


@pytest.mark.parametrize("size", [(50_000, 50_000), (1, 200_000_000), (16_000, 12_000)], ids=str)
def test_a_bomb_is_refused_before_it_is_decoded(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*args: Any) -> None:
        raise AssertionError("decoded")

    bomb = png_header(*size)
    Image.init()
    monkeypatch.setattr(Image.OPEN["PNG"][0], "load", explode)
    (tmp_path / "bomb.png").write_bytes(bomb)
    wanted = f"{size[0]} x {size[1]} pixels, over the limit of {MAX_PIXELS}"
    refused(bomb, wanted)
    refused(tmp_path / "bomb.png", "bomb.png", wanted)


def test_the_pixel_limit_counts_every_source(tmp_path: Path) -> None:
    data = encoded(smooth())
    sources: list[Any] = [data, smooth(), np.asarray(smooth()), Image.open(io.BytesIO(data))]
    for source in sources:
        refused(source, "60 x 40", "limit of 2399", max_pixels=2399)
        assert open_picture(source, max_pixels=2400).size == (60, 40)


@pytest.mark.parametrize("theirs", [100, None])
def test_pillows_own_limit_plays_no_part(
    theirs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", theirs)
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert open_picture(encoded(smooth())).size == (60, 40)
    assert not caught
    refused(encoded(smooth()), "over the limit of 99", max_pixels=99)
    assert theirs == Image.MAX_IMAGE_PIXELS
    assert warnings.filters == filters


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF"])
def test_an_animation_is_refused_with_the_way_to_give_it_as_a_video(form: str) -> None:
    data = animation(form)
    message = refused(data, "animation", "give it as a video (video=..., --video)")
    with pytest.raises(ImageError) as caught:
        find_picture(data)
    assert str(caught.value) == message


def test_several_pages_are_refused() -> None:
    refused(animation("TIFF"), "several pages", "save the one you mean")


def test_the_second_picture_that_phones_add_to_a_jpeg_is_left() -> None:
    opened = open_picture(animation("MPO"))
    alone = open_picture(encoded(smooth(), "JPEG"))
    assert opened.tobytes() == alone.tobytes()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_that_are_no_levels_are_refused(dtype: type) -> None:
    picture = Image.fromarray(np.full((9, 9), 100, dtype))
    for source in (picture, encoded(picture, "TIFF")):
        refused(source, f"mode {picture.mode}", "scale them to 0 to 255")
        with pytest.raises(ImageError, match="scale them"):
            find_picture(source)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "PIL", "inverted TIFF", "hidden"])
def test_grey_of_sixteen_bits_comes_as_its_high_byte(form: str) -> None:
    """As Pillow itself takes 16-bit colour; its conversion to RGB would clip at 255."""
    levels = (np.arange(60, dtype=np.uint16) * 1100).reshape(6, 10)
    deep = Image.fromarray(levels)
    assert deep.mode == "I;16"
    wanted = (levels >> 8).astype(np.uint8)
    source: Any = (
        deep if form == "PIL" else encoded(deep, form.split()[-1] if form != "hidden" else "PNG")
    )
    if form == "inverted TIFF":
        source = encoded(deep, "TIFF", tiffinfo={262: 0})
        wanted = 255 - wanted
    if form == "hidden":
        source = encoded(deep, "PNG", transparency=int(levels[2, 3]))
        wanted = np.where(levels == levels[2, 3], 255, wanted)
    shown = np.asarray(to_rgb(open_picture(source)))
    assert find_picture(source).size == (10, 6)
    np.testing.assert_array_equal(shown, np.repeat(wanted[..., None], 3, axis=-1))


def test_sixteen_bits_of_colour_are_taken() -> None:
    """Pillow itself brings 16-bit RGB down to 8 bits."""
    rows = b"".join(b"\0" + struct.pack(">6H", *[0x8000] * 6) for _ in range(2))
    body = b"IHDR" + struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    chunks = [body, b"IDAT" + zlib.compress(rows), b"IEND"]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )
    assert np.asarray(open_picture(data)).tolist() == [[[128] * 3] * 2] * 2


def test_pil_images_that_cannot_be_loaded_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(smooth()))
    with Image.open(file) as gone:
        pass
    refused(gone, "before its file is closed")
    data = encoded(smooth())
    refused(Image.open(io.BytesIO(data[: len(data) // 2])), "cannot be loaded")
    refused(Image.new("RGB", (0, 5)), "no pixels (0 x 5)")


def test_pictures_keep_their_order_and_errors_their_number() -> None:
    sources: list[Any] = [encoded(smooth()), np.zeros((3, 4), np.uint8), smooth(9, 8)]
    assert [picture.size for picture in open_pictures(sources)] == [(60, 40), (4, 3), (8, 9)]
    assert open_pictures([]) == []
    with pytest.raises(ImageError, match=r"^Picture 2: There is no file 'gone.png'"):
        open_pictures([sources[0], "gone.png", b""])
    with pytest.raises(ImageError, match=r"Picture 1: .*limit of 12"):
        open_pictures(iter(sources), max_pixels=12)


def test_many_pictures_stay_in_order_and_the_first_bad_one_is_named() -> None:
    arrays = [np.full((2, 3, 3), level, np.uint8) for level in range(40)]
    opened = open_pictures(iter(arrays))
    assert [picture.getpixel((0, 0)) for picture in opened] == [(n, n, n) for n in range(40)]
    with pytest.raises(ImageError, match=r"^Picture 6: There is no file 'gone.png'"):
        open_pictures([*arrays[:5], "gone.png", *arrays[:9], "lost.png"])


@pytest.mark.parametrize(
    "single",
    [
        lambda: "a.png",
        lambda: Path("a.png"),
        lambda: b"x",
        lambda: smooth(),
        lambda: np.asarray(smooth()),
    ],
    ids=["str", "Path", "bytes", "PIL", "array"],
)
def test_one_picture_where_a_list_belongs_is_refused(single: Callable[[], Any]) -> None:
    with pytest.raises(ImageError, match=r"write \[picture\]"):
        open_pictures(single())


def test_a_batch_in_one_array_is_a_list_of_pictures() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    for picture, levels in zip(open_pictures(batch), batch, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), levels)
