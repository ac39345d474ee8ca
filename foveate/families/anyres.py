"""Anyres: a picture of any aspect ratio on a canvas of square tiles, and the grid of tokens that is left of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.errors import ImageError
from foveate.families.pixels import resize_bicubic
from foveate.families.taps import interpolated, single

Size = tuple[int, int]
"""Height and width."""
MOST_OVER = 1.1
"""How much longer than the square root of the limit a grid may be before it is interpolated."""
DIGITS = 7
"""Decimals to which the reference rounds a side before it cuts the rest off."""


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Square tiles of a vision tower.

    Attributes:
        side: Pixels along each side.
        patch: Pixels along each side of a patch; what is left of a side beyond whole ones is not seen.
    """

    side: int
    patch: int

    @property
    def patches(self) -> int:
        """Patches along each side."""
        return self.side // self.patch

    @property
    def rows(self) -> NDArray[np.int64]:
        """The numbers of a tile's patches, int64 [patches, patches]."""
        return np.arange(self.patches**2, dtype=np.int64).reshape(self.patches, -1)

    def begins(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Places along tiles beside each other, in patches, as pixels at which something begins."""
        return self._pixels(places, np.floor(places / self.patches))

    def ends(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same, at which something ends: where two tiles meet with the last patch of the first."""
        return self._pixels(places, np.ceil(places / self.patches) - 1)

    def _pixels(
        self, places: NDArray[np.float64], tiles: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Places as pixels of the tiles that they are on."""
        return tiles * self.side + (places - tiles * self.patches) * self.patch


@dataclass(frozen=True, slots=True)
class Edges:
    """A picture and a grid of cells along one axis of the tiles.

    Attributes:
        begin: The pixel at which the picture begins.
        length: How many it takes.
        places: Where cells begin, and the last ends, float64 [cells + 1], in patches.
    """

    begin: float
    length: float
    places: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where a picture lies on its tiles.

    Attributes:
        tiles: The tiles.
        down: Rows of tiles.
        across: Columns of tiles.
        picture: The picture's own size.
        resized: Its size on the canvas, in the middle of which it is.
    """

    tiles: TileGrid
    down: int
    across: int
    picture: Size
    resized: Size

    @classmethod
    def choose(
        cls, picture: Size, pinpoints: Sequence[Size], tiles: TileGrid, number: int = 1
    ) -> "Canvas":
        """The canvas that shows most of a picture, and of such the one with the least around it.

        Args:
            picture: Its size.
            pinpoints: The sizes that a canvas may have.
            tiles: What they are made of.

        Raises:
            ImageError: A picture so long that nothing of it is left at any size; the message calls it
                `number`.
        """
        height, width = picture
        best, most, least = None, 0, math.inf
        for down, across in pinpoints:
            scale = min(across / width, down / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            wasted = down * across - shown
            if shown > most or (shown == most and wasted < least):
                best, most, least = (down, across), shown, wasted
        if best is None:
            raise ImageError(
                f"Picture {number} is {width} x {height} pixels, so long that nothing is left of it at any "
                "size that the model takes; crop or pad it."
            )
        down, across = best
        wide, high = across / width, down / height
        if wide < high:
            resized = min(math.ceil(height * wide), down), across
        else:
            resized = down, min(math.ceil(width * high), across)
        return cls(tiles, down // tiles.side, across // tiles.side, picture, resized)

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return self.down * self.across

    @property
    def size(self) -> Size:
        """Its height and width in pixels."""
        return self.down * self.tiles.side, self.across * self.tiles.side

    def cut(self, picture: Image.Image) -> NDArray[np.uint8]:
        """The tiles uint8 [count, side, side, 3] of a picture in RGB, black around it, in the order of rows."""
        side, (height, width) = self.tiles.side, self.resized
        high, wide = self.size
        top, left = (high - height) // 2, (wide - width) // 2
        canvas = np.zeros((high, wide, 3), np.uint8)
        resized = resize_bicubic(picture, height, width)
        canvas[top : top + height, left : left + width] = np.asarray(resized)
        cut = canvas.reshape(self.down, side, self.across, side, 3).swapaxes(1, 2)
        tiles: NDArray[np.uint8] = cut.reshape(-1, side, side, 3)
        return tiles

    def span(self) -> tuple[slice, slice]:
        """The rows and columns of the canvas's patches that are not all padding, as the reference has them."""
        height, width = self.picture
        patches = self.tiles.patches
        high, wide = self.down * patches, self.across * patches
        if width / height > wide / high:
            inside = int(round(height * (wide / width), DIGITS))
            padding = (high - inside) // 2
            return slice(padding, high - padding), slice(0, wide)
        inside = int(round(width * (high / height), DIGITS))
        padding = (wide - inside) // 2
        return slice(0, high), slice(padding, wide - padding)

    def shape(self, most: int) -> Size:
        """Rows and columns of the tokens that are left, interpolated where there are too many.

        Args:
            most: How many tiles' worth of tokens there may be, give or take a fifth.
        """
        high, wide = (part.stop - part.start for part in self.span())
        ratio = math.sqrt(high * wide / (most * self.tiles.patches**2))
        if ratio > MOST_OVER:
            return int(high // ratio), int(wide // ratio)
        return high, wide

    def taps(self, most: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Which patches make up each token that is left, and with what weights, [N, 1 or 4]."""
        patches = self.tiles.patches
        of_tile = np.arange(self.count, dtype=np.int64) * patches**2
        whole = of_tile[:, None, None] + self.tiles.rows
        canvas = whole.reshape(self.down, self.across, patches, patches).swapaxes(1, 2)
        left = canvas.reshape(self.down * patches, -1)[self.span()]
        shape = self.shape(most)
        return single(left) if left.shape == shape else interpolated(left, *shape)

    def boxes(self, most: int) -> NDArray[np.float32]:
        """The part of the picture that each token that is left shows, float32 [N, 4]."""
        edges: list[Edges] = []
        both = zip(self.span(), self.shape(most), self.size, self.resized, strict=True)
        for span, count, side, inside in both:
            places = np.linspace(span.start, span.stop, count + 1)
            edges.append(Edges((side - inside) // 2, inside, places))
        return grid_boxes(self.tiles, *edges)


def grid_boxes(tiles: TileGrid, down: Edges, across: Edges) -> NDArray[np.float32]:
    """The parts of a picture that the cells of a grid show, float32 [rows · columns, 4].

    Of a cell that shows less than a pixel of the picture, as it is on the tiles, the box is empty.
    """
    spans = []
    for edges in (down, across):
        pixels = [tiles.begins(edges.places[:-1]), tiles.ends(edges.places[1:])]
        shares = np.clip((np.stack(pixels, -1) - edges.begin) / edges.length, 0, 1)
        shares[shares[:, 1] - shares[:, 0] < 1 / edges.length] = 0
        spans.append(shares)
    rows, columns = spans
    boxes = np.zeros((len(rows), len(columns), 4), np.float32)
    boxes[..., 0::2] = columns
    boxes[..., 1::2] = rows[:, None]
    boxes[(boxes[..., 2:] <= boxes[..., :2]).any(-1)] = 0
    return boxes.reshape(-1, 4)
