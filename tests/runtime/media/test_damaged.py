"""Files that are damaged or no pictures: one clear error, or the picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from foveate.errors import ImageError
from foveate.runtime.media.pictures import FORMATS, open_picture
from tests.runtime.media.made import LOSSLESS, LOSSY, encoded, refused, smooth


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty (0 bytes)"),
        (b"\0", "no format"),
        (b"hello, I am a text file of some length\n" * 9, "PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "convert it to PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "cut short or damaged"),
        (b"\x89PNG\r\n\x1a\n", "cut short or damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "cut short or damaged"),
        (b"\xff\xd8\xff", "cut short or damaged"),
        (b"GIF89a", "cut short or damaged"),
        (b"BM", "cut short or damaged"),
        (b"BM" + b"\xff" * 60, "cut short or damaged"),
        (b"II*\0" + b"\xff" * 60, "cut short or damaged"),
        (b"RIFF\x20\0\0\0WEBPVP8 " + bytes(20), "cut short or damaged"),
        (b"P6 9 9 255\n", "cut short or damaged"),
        (b"P6 0 9 255\n", "P6"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_data_that_is_no_picture_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    refused(data, "" if words == "P6" else words, f"{len(data)} bytes" if data else "0 bytes")
    file = tmp_path / "named.png"
    file.write_bytes(data)
    refused(file, "named.png")


def test_formats_that_run_other_programs_are_not_read() -> None:
    assert not {"EPS", "WMF", "ICNS", "FLI"} & set(FORMATS)


@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "LOAD_TRUNCATED_IMAGES"])
@pytest.mark.parametrize("form", [*LOSSLESS, "JPEG", "GIF", "AVIF"])
def test_a_cut_file_is_refused_and_a_whole_one_is_not(
    form: str, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    noise = np.random.default_rng(3).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), form, **LOSSLESS.get(form, {}))
    assert open_picture(data).size == (120, 90)
    for share in (0.1, 0.5, 0.9):
        refused(data[: int(len(data) * share)], "cut short")
    assert lenient is ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "LOAD_TRUNCATED_IMAGES"])
def test_a_flipped_byte_in_a_png_is_seen(lenient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = bytearray(encoded(smooth()))
    data[len(data) // 2] ^= 0xFF
    refused(bytes(data), "damaged")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [*LOSSLESS, *LOSSY])
def test_damaged_files_give_a_picture_or_an_image_error(form: str) -> None:
    """Any bytes: random damage to a real file raises nothing of Pillow's own."""
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    random = np.random.default_rng(17)
    data = encoded(smooth(), form, **LOSSLESS.get(form, {}))
    outcomes = {"picture": 0, "error": 0}
    for _ in range(120):
        damaged = bytearray(data[: int(random.integers(1, len(data) + 1))])
        for place in random.integers(0, len(damaged), 3):
            damaged[place] = int(random.integers(0, 256))
        try:
            open_picture(bytes(damaged), max_pixels=1_000_000)
            outcomes["picture"] += 1
        except ImageError:
            outcomes["error"] += 1
    assert outcomes["error"] > 20
