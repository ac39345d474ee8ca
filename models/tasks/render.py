"""Drawing pictures, thousands a second on a GPU."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from tasks.glyphs import SHAPE, bank
from tasks.picture import Picture
from torch import Tensor

MARGIN = SHAPE


@dataclass(frozen=True, slots=True)
class Orders:
    """Drawing orders of pictures of one size.

    Attributes:
        size: (height, width) in pixels.
        grounds: int16 [B, G, 4], top, left, bottom, right.
        ground_colors: float32 [B, 1 + G, 3], the background's first.
        shapes, glyphs: int16 [B, M, 3], tile, top, left; tile -1 where there is none.
        shape_colors, glyph_colors: float32 [B, M, 3].
    """

    size: tuple[int, int]
    grounds: Tensor
    ground_colors: Tensor
    shapes: Tensor
    shape_colors: Tensor
    glyphs: Tensor
    glyph_colors: Tensor

    def to(self, device: str | torch.device) -> "Orders":
        """The same orders on a device."""
        parts = (getattr(self, name) for name in list(self.__dataclass_fields__)[1:])
        return Orders(self.size, *(part.to(device, non_blocking=True) for part in parts))


def orders(pictures: list[Picture]) -> Orders:
    """Drawing orders as tensors."""
    batch = len(pictures)
    most = max(len(picture.grounds) for picture in pictures)
    grounds = np.zeros((batch, most, 4), dtype=np.int16)
    ground_colors = np.zeros((batch, most + 1, 3), dtype=np.float32)
    for number, picture in enumerate(pictures):
        ground_colors[number, 0] = picture.background
        for place, ground in enumerate(picture.grounds):
            grounds[number, place] = ground[:4]
            ground_colors[number, place + 1] = ground[4]
    shapes = _placed([picture.shapes for picture in pictures])
    glyphs = _placed([picture.glyphs for picture in pictures])
    parts = (torch.from_numpy(part) for part in (grounds, ground_colors, *shapes, *glyphs))
    return Orders(pictures[0].size, *parts)


def _placed(
    tiles: list[list[tuple[int, int, int, tuple[int, int, int]]]],
) -> tuple[np.ndarray, np.ndarray]:
    """Tiles and their colours as arrays, tile -1 for padding."""
    most = max(1, *(len(some) for some in tiles))
    placed = np.full((len(tiles), most, 3), -1, dtype=np.int16)
    colors = np.zeros((len(tiles), most, 3), dtype=np.float32)
    for number, some in enumerate(tiles):
        for place, tile in enumerate(some):
            placed[number, place] = tile[:3]
            colors[number, place] = tile[3]
    return placed, colors


def render(pictures: list[Picture], device: str | torch.device = "cpu") -> Tensor:
    """Draw pictures of one size: uint8 [B, H, W, 3]."""
    return draw(orders(pictures).to(device))


def draw(orders: Orders) -> Tensor:
    """Carry out orders on their device: uint8 [B, H, W, 3]."""
    height, width = orders.size
    device = orders.grounds.device
    rows = torch.arange(height, device=device, dtype=torch.int16)[None, :, None]
    columns = torch.arange(width, device=device, dtype=torch.int16)[None, None, :]
    owner = torch.zeros(len(orders.grounds), height, width, dtype=torch.int16, device=device)
    for place in range(orders.grounds.shape[1]):
        top, left, bottom, right = (edge[:, None, None] for edge in orders.grounds[:, place].T)
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        owner = owner.masked_fill(inside, place + 1)
    canvas = _colored(owner, orders.ground_colors)
    shapes, glyphs = _tiles(str(device))
    canvas = _blend(canvas, shapes, orders.shapes, orders.shape_colors)
    canvas = _blend(canvas, glyphs, orders.glyphs, orders.glyph_colors)
    return canvas.round().to(torch.uint8)


@cache
def _tiles(device: str) -> tuple[Tensor, Tensor]:
    """The bank's coverage on a device: shapes and glyphs."""
    drawn = bank()
    return torch.from_numpy(drawn.shapes).to(device), torch.from_numpy(drawn.glyphs).to(device)


def _colored(owner: Tensor, colors: Tensor) -> Tensor:
    """Each pixel's colour float32 [B, H, W, 3] by the number of its owner [B, H, W]."""
    index = owner.flatten(1).long()[..., None].expand(-1, -1, 3)
    return colors.gather(1, index).view(*owner.shape, 3)


def _blend(canvas: Tensor, bank: Tensor, placed: Tensor, colors: Tensor) -> Tensor:
    """Blend tiles over a canvas; where two overlap, the one that covers more is seen.

    Args:
        canvas: float32 [B, H, W, 3].
        bank: uint8 [tiles, S, S], their coverage.
        placed: int16 [B, M, 3], tile, top, left.
        colors: float32 [B, M, 3].
    """
    batch, height, width, _ = canvas.shape
    side, count = bank.shape[-1], placed.shape[1]
    number, top, left = placed.long().unbind(-1)
    coverage = bank[number.clamp(min=0)].int() * (number >= 0)[..., None, None]
    order = torch.arange(count, device=canvas.device, dtype=torch.int32)[:, None, None]
    value = torch.where(coverage > 0, coverage * count + order, 0)
    step = torch.arange(side, device=canvas.device)
    row = (top[..., None] + MARGIN + step).clamp(0, height + 2 * MARGIN - 1)
    column = (left[..., None] + MARGIN + step).clamp(0, width + 2 * MARGIN - 1)
    index = row[..., :, None] * (width + 2 * MARGIN) + column[..., None, :]
    seen = torch.zeros(
        batch, (height + 2 * MARGIN) * (width + 2 * MARGIN), dtype=torch.int32, device=canvas.device
    )
    seen.scatter_reduce_(1, index.flatten(1), value.flatten(1), "amax")
    seen = seen.view(batch, height + 2 * MARGIN, width + 2 * MARGIN)
    seen = seen[:, MARGIN : MARGIN + height, MARGIN : MARGIN + width]
    alpha = (seen // count).float()[..., None] / 255
    return canvas + (_colored(seen % count, colors) - canvas) * alpha
