"""Marks what a graph computes block by block, so that it holds little of it at once.

Torch traces what is done to one block as if it were done to all of a tensor; `foveate.export.scans` makes a
Scan over blocks of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

DOMAIN, ENTER, LEAVE = "foveate", "Enter", "Leave"
NUMBERS = count()
"""Parts that look alike are told apart by their numbers."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a tensor is cut along an axis into equal blocks, the last one padded.

    A graph computes these numbers, int64, once for all tensors of a shape. The last axis is -1 in them and may
    have any length.

    Attributes:
        name: What is cut.
        axis: Where, in the flat shape.
        rows: A block's length there.
        whole: The tensor's shape.
        flat: Its shape with the axes joined that are cut as one.
        pads: Padding before and after each flat axis.
        padded: The flat shape with the padding.
        stacked: The shape of all blocks, one after the other; a block has the tensor's rank.
        end: The flat axis's length without padding.
    """

    name: str
    axis: int
    rows: Any
    whole: Tensor
    flat: Tensor
    pads: Tensor
    padded: Tensor
    stacked: Tensor
    end: Tensor

    @classmethod
    def of(cls, name: str, shape: Sequence[Any], axis: int, most: Any, joined: int = 0) -> "Blocks":
        """Blocks of at most `most` rows each of tensors of a shape.

        Args:
            name: What is cut.
            shape: The tensors', but for their last axis's length.
            axis: Where to cut, counted after joining; axes before it are of length 1 where there are two blocks.
            most: The most rows of a block.
            joined: How many of the first axes are joined to the next one, to be cut together.
        """
        flat = [math.prod(shape[: joined + 1]), *shape[joined + 1 : -1], -1]
        size = flat[axis]
        blocks = _most(1, (size + most - 1) // most)
        rows = (size + blocks - 1) // blocks
        pads = [0] * (2 * len(flat))
        pads[len(flat) + axis] = blocks * rows - size
        padded, block = list(flat), list(flat)
        padded[axis], block[axis] = blocks * rows, rows
        return cls(
            name,
            axis,
            rows,
            _numbers([*shape[:-1], -1]),
            _numbers(flat),
            _numbers(pads),
            _numbers(padded),
            _numbers([blocks, *[1] * joined, *block]),
            _numbers([size]),
        )


class Part:
    """What is computed of each block; tracing leaves a mark where it begins and where it ends."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks, self.number = blocks, next(NUMBERS)

    def enter(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """A block of each tensor; all of it where no graph is exported."""
        return tuple(
            self._marked(ENTER, one, self.blocks.flat, self.blocks.pads, self.blocks.stacked)
            for one in tensors
        )

    def leave(self, tensor: Tensor) -> Tensor:
        """What has been computed of each block, together."""
        blocks = self.blocks
        return self._marked(LEAVE, tensor, blocks.padded, blocks.end, blocks.whole)

    def _marked(self, kind: str, tensor: Tensor, *numbers: Tensor) -> Tensor:
        """The tensor, through an operator that does nothing."""
        if not torch.onnx.is_in_onnx_export():
            return tensor
        marked: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{kind}",
            (tensor, *numbers),
            {"part": self.number, "axis": self.blocks.axis, "name": self.blocks.name},
            dtype=tensor.dtype,
            shape=tensor.shape,
            version=1,
        )
        return marked


def _most(one: Any, other: Any) -> Any:
    """The larger of two lengths."""
    return torch.sym_max(one, other)  # type: ignore[no-untyped-call]


def _numbers(values: Sequence[Any]) -> Tensor:
    """Lengths as a tensor int64."""
    return torch.cat([torch.full((1,), value, dtype=torch.int64) for value in values])
