"""Attention in forms that torch can trace into a graph."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from foveate.modeling.blocks import Blocks, Part
from foveate.runtime.memory_estimate import VISION_SCORES

TILES = "foveate_tiles"
"""Attention within tiles, each a batch of its own, by the name that transformers knows."""
GROUPED = "foveate_grouped"
"""The name by which transformers knows `grouped_attention`."""


@dataclass(frozen=True, slots=True)
class AttentionBlocks:
    """Blocks that bound how many attention scores there are at once.

    Attributes:
        heads: Of all pictures: several at once where their scores are few.
        queries: Of those, in blocks where the scores of one head are too many.
    """

    heads: Blocks
    queries: Blocks

    @classmethod
    def of(cls, pictures: Any, heads: int, patches: Any, width: int) -> "AttentionBlocks":
        """Blocks of `heads` heads, `width` wide, of pictures of `patches` patches each."""
        together = torch.sym_max(1, VISION_SCORES // (patches * patches))  # type: ignore[no-untyped-call]
        rows = torch.sym_max(1, VISION_SCORES // patches)  # type: ignore[no-untyped-call]
        outer = Blocks.of("heads", (pictures, heads, patches, width), 0, together, joined=1)
        return cls(outer, Blocks.of("queries", (1, outer.rows, patches, width), 2, rows))


def pictures_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, pictures: Any, blocks: AttentionBlocks
) -> Tensor:
    """Attention within each picture, [N · L, C] of N pictures of L patches; queries are scaled."""
    query, key, value = (
        one.reshape(pictures, -1, heads, one.shape[1] // heads).transpose(1, 2)
        for one in (query, key, value)
    )
    return blockwise_attention(query, key, value, blocks).transpose(1, 2).flatten(2).flatten(0, 1)


def tiles_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each of N tiles, [N, heads, L, D]; there is no mask."""
    blocks = AttentionBlocks.of(*query.shape)
    return blockwise_attention(query * scaling, key, value, blocks).transpose(1, 2), None


def blockwise_attention(
    query: Tensor, key: Tensor, value: Tensor, blocks: AttentionBlocks
) -> Tensor:
    """Attention of queries [N, heads, L, D], scaled; traced, it is in blocks."""
    few, part = Part(blocks.heads), Part(blocks.queries)
    query, key, value = few.enter(query, key, value)
    columns = key.transpose(2, 3)
    (rows,) = part.enter(query)
    weights = torch.softmax(torch.matmul(rows, columns).float(), dim=-1).to(rows.dtype)
    return few.leave(part.leave(torch.matmul(weights, value)))


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Grouped-query attention that never repeats keys or values; the mask is additive [B, 1, S, T]."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    query = query.reshape(batch, groups, heads // groups * length, width)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    scores = scores.float().reshape(batch, heads, length, key.shape[2]) + attention_mask
    weights = torch.softmax(scores, dim=-1).to(query.dtype)
    weights = weights.reshape(batch, groups, heads // groups * length, key.shape[2])
    return torch.matmul(weights, value).reshape(batch, heads, length, width).transpose(1, 2), None


AttentionInterface.register(TILES, tiles_attention)
AttentionInterface.register(GROUPED, grouped_attention)
