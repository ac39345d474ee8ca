"""Attention in forms that torch can trace into a graph, by the names that transformers knows them by."""

from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from transformers import AttentionInterface

from foveate.runtime.memory_estimate import VISION_SCORES

PICTURES = "foveate_pictures|flash_attention"
"""Attention within pictures of one size; transformers passes their borders to what is named like flash
attention."""
TILES = "foveate_tiles"
"""Attention within tiles, each a batch of its own."""
GROUPED = "foveate_grouped"


def pictures_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each picture, [1, heads, N · L, D] of N of L patches; only the borders' number counts."""
    pictures = cu_seq_lens_q.shape[0] - 1
    heads, patches, width = query.shape[1:]
    query, key, value = (
        one[0].reshape(heads, pictures, patches // pictures, width).transpose(0, 1)
        for one in (query * scaling, key, value)
    )
    attended = blockwise_attention(query, key, value).transpose(1, 2)
    return attended.flatten(0, 1)[None], None


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
    return blockwise_attention(query * scaling, key, value).transpose(1, 2), None


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of queries [N, heads, L, D], scaled, in blocks that bound how many scores there are.

    Traced, it is a Scan over the blocks of queries.
    """
    count, heads, length, width = query.shape
    rows = torch.sym_min(length, VISION_SCORES // (count * heads * length))  # type: ignore[no-untyped-call]
    rows = torch.sym_max(1, rows)  # type: ignore[no-untyped-call]
    blocks = (length + rows - 1) // rows
    padded = nn.functional.pad(query, (0, 0, 0, blocks * rows - length))
    stacked = padded.reshape(count, heads, blocks, rows, width).permute(2, 0, 1, 3, 4)
    columns = key.transpose(2, 3)

    def attend(carried: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        """One block of queries; a scan must carry something along."""
        weights = torch.softmax(torch.matmul(block, columns).float(), dim=-1).to(block.dtype)
        return carried.clone(), torch.matmul(weights, value)

    _, attended = scan(attend, torch.zeros(1), stacked)
    attended = attended.permute(1, 2, 0, 3, 4).reshape(count, heads, blocks * rows, width)
    found: Tensor = attended.narrow(2, 0, length)
    return found


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


AttentionInterface.register(PICTURES, pictures_attention)
AttentionInterface.register(TILES, tiles_attention)
AttentionInterface.register(GROUPED, grouped_attention)
