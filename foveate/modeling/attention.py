"""Attention in forms that torch can trace into a graph, by the names that transformers knows them by."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

SEGMENTED = "foveate_segmented|flash_attention"
"""Attention within segments; transformers passes their borders to what is named like flash attention."""
GROUPED = "foveate_grouped"


def segmented_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each picture or frame, their borders given by cumulative lengths [S + 1]."""
    place = torch.arange(query.shape[2], device=query.device)
    segment = (place[:, None] >= cu_seq_lens_q[None, 1:]).sum(-1)
    apart = segment[:, None] != segment[None, :]
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    scores = scores.float().masked_fill(apart, float("-inf"))
    weights = torch.softmax(scores, dim=-1).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2), None


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


AttentionInterface.register(SEGMENTED, segmented_attention)
AttentionInterface.register(GROUPED, grouped_attention)
