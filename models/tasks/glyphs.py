"""Letters, digits and shapes, each drawn once by Pillow at every size and in every font."""

import math
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
HEIGHTS = (14, 16, 18, 20, 22, 25, 28, 32, 36, 40)
"""Heights of a capital H in pixels."""
GLYPH = 56
"""Side of a glyph's tile in pixels."""
SHAPE = 92
"""Side of a shape's tile in pixels."""
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
SHAPE_SIZES = (70, 76, 82, 88)
MATPLOTLIB = ("matplotlib", "mpl-data/fonts/ttf")
FONTS = (
    (*MATPLOTLIB, "DejaVuSans-Bold.ttf"),
    (*MATPLOTLIB, "DejaVuSans.ttf"),
    (*MATPLOTLIB, "DejaVuSerif-Bold.ttf"),
    (*MATPLOTLIB, "STIXGeneralBol.ttf"),
    (*MATPLOTLIB, "cmss10.ttf"),
    (*MATPLOTLIB, "DejaVuSerif.ttf"),
    (*MATPLOTLIB, "STIXGeneral.ttf"),
    (*MATPLOTLIB, "cmb10.ttf"),
    (*MATPLOTLIB, "cmtt10.ttf"),
    ("font_source_sans_pro", "files", "SourceSansPro-Semibold.ttf"),
    ("font_source_sans_pro", "files", "SourceSansPro-Regular.ttf"),
    ("font_source_sans_pro", "files", "SourceSansPro-Black.ttf"),
    ("font_source_serif_pro", "files", "SourceSerifPro-Regular.ttf"),
    ("font_source_serif_pro", "files", "SourceSerifPro-Bold.ttf"),
    ("font_source_serif_pro", "files", "SourceSerifPro-Black.ttf"),
    ("font_hanken_grotesk", "files", "HankenGrotesk-Medium.otf"),
    ("font_hanken_grotesk", "files", "HankenGrotesk-Bold.otf"),
    ("font_fredoka_one", "files", "FredokaOne-Regular.ttf"),
)
HELD_OUT_FONTS = (
    (*MATPLOTLIB, "DejaVuSansMono-Bold.ttf"),
    ("font_manrope", "files", "Manrope-Bold.ttf"),
    ("font_caladea", "files", "Caladea-Bold.ttf"),
)


@dataclass(frozen=True, slots=True)
class Bank:
    """Every tile's coverage.

    Attributes:
        shapes: uint8 [shapes · sizes, SHAPE, SHAPE].
        glyphs: uint8 [fonts · heights · characters, GLYPH, GLYPH].
        widths: float32 [fonts · heights · characters], how far each character moves the pen.
    """

    shapes: NDArray[np.uint8]
    glyphs: NDArray[np.uint8]
    widths: NDArray[np.float32]


def shape_tile(shape: str, size: int) -> int:
    """The number of a shape's tile at the size of that number."""
    return SHAPES.index(shape) * len(SHAPE_SIZES) + size


def glyph_tile(font: int, height: int, character: str) -> int:
    """The number of a character's tile in a font at the height of that number."""
    return (font * len(HEIGHTS) + height) * len(CHARACTERS) + CHARACTERS.index(character)


@cache
def shape_reach(tile: int) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of what a shape covers of its tile, in pixels."""
    rows, columns = (bank().shapes[tile].any(axis).nonzero()[0] for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def draw_font(rng: np.random.Generator, held_out: bool) -> int:
    """The number of a font to train on, or of a held-out one."""
    if held_out:
        return len(FONTS) + int(rng.integers(len(HELD_OUT_FONTS)))
    return int(rng.integers(len(FONTS)))


@cache
def bank() -> Bank:
    """Draw every tile, about 7,000."""
    shapes = [_shape(shape, size) for shape in SHAPES for size in SHAPE_SIZES]
    glyphs, widths = [], []
    for font in (*FONTS, *HELD_OUT_FONTS):
        path = _font_file(*font)
        large = ImageFont.truetype(path, 400)
        _, top, _, bottom = large.getbbox("H", anchor="ls")
        for height in HEIGHTS:
            scaled = ImageFont.truetype(path, 400 * height / (bottom - top))
            for character in CHARACTERS:
                image = Image.new("L", (GLYPH, GLYPH))
                ImageDraw.Draw(image).text(
                    (GLYPH / 2, GLYPH / 2 + height / 2), character, 255, scaled, anchor="ms"
                )
                glyphs.append(np.asarray(image))
                widths.append(scaled.getlength(character))
    return Bank(np.stack(shapes), np.stack(glyphs), np.array(widths, dtype=np.float32))


def _font_file(package: str, folder: str, name: str) -> Path:
    """A font's file in an installed package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        packages = sorted({first.replace("_", "-") for first, *_ in (*FONTS, *HELD_OUT_FONTS)})
        raise SystemExit(f"{package} is not installed: pip install {' '.join(packages)}")
    return Path(spec.submodule_search_locations[0]) / folder / name


def _shape(shape: str, size: int) -> NDArray[np.uint8]:
    """A shape of `size` pixels in the middle of its tile, its edges smooth."""
    scale = 4
    image = Image.new("L", (SHAPE * scale, SHAPE * scale))
    draw = ImageDraw.Draw(image)
    middle, radius = SHAPE * scale / 2, size * scale / 2
    low, high = middle - radius, middle + radius
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=255)
    elif shape == "square":
        inset = radius * 0.12
        draw.rectangle((low + inset, low + inset, high - inset, high - inset), fill=255)
    elif shape == "cross":
        arm = radius * 0.56
        draw.rectangle((low, middle - arm, high, middle + arm), fill=255)
        draw.rectangle((middle - arm, low, middle + arm, high), fill=255)
    else:
        draw.polygon(_corners(shape, middle, radius), fill=255)
    return np.asarray(image.resize((SHAPE, SHAPE), Image.Resampling.BOX))


def _corners(shape: str, middle: float, radius: float) -> list[tuple[float, float]]:
    """The corners of a polygon around the middle of a tile, in pixels."""
    if shape == "triangle":
        return [
            (middle, middle - radius * 1.02),
            (middle + radius * 1.12, middle + radius * 0.92),
            (middle - radius * 1.12, middle + radius * 0.92),
        ]
    if shape == "diamond":
        angles, lengths = [0, 90, 180, 270], [1.08] * 4
    else:
        angles = [place * 36 for place in range(10)]
        lengths = [1.18 if place % 2 == 0 else 0.62 for place in range(10)]
    return [
        (
            middle + radius * length * math.sin(math.radians(angle)),
            middle - radius * length * math.cos(math.radians(angle)),
        )
        for angle, length in zip(angles, lengths, strict=True)
    ]
