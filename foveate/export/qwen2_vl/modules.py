"""The modules that become Qwen2-VL's graphs, built from transformers' own layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb

VISION_ATTENTION = "foveate_vision|flash_attention"
TEXT_ATTENTION = "foveate_grouped"


def segment_attention(
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


AttentionInterface.register(VISION_ATTENTION, segment_attention)
AttentionInterface.register(TEXT_ATTENTION, grouped_attention)


class PatchProjection(nn.Module):
    """The patch embedding's strided convolution as the matrix product that it equals."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = convolution.weight

    def forward(self, patches: Tensor) -> Tensor:
        """Embeddings [P, C] of flattened patches [P, channels · frames · side²]."""
        return nn.functional.linear(patches.to(self.weight.dtype), self.weight.flatten(1))


class Vision(nn.Module):
    """Patches of any number of pictures to visual tokens E_v."""

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.visual
        self.tower.patch_embed = PatchProjection(self.tower.patch_embed.proj)

    def forward(self, pixel_values: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Visual tokens [N_v, H].

        Args:
            pixel_values: float32 [P, C · frames · side²], normalised patches.
            position_ids: int64 [P, 2], each patch's row and column in its picture.
            cu_seqlens: int32 [pictures + 1], where each picture's patches begin and the last end.
        """
        output = self.tower(
            pixel_values, None, position_ids=position_ids, cu_seqlens=cu_seqlens, max_seqlen=1
        )
        visual: Tensor = output.pooler_output
        return visual


class Embeddings(nn.Module):
    """Token ids [N] to embedding rows [N, H]."""

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        super().__init__()
        self.table = model.model.language_model.embed_tokens

    def forward(self, token_ids: Tensor) -> Tensor:
        """Rows [N, H] of ids int64 [N]."""
        rows: Tensor = self.table(token_ids)
        return rows


class FirstLayerProbe(nn.Module):
    """Attention weights of the language model's layer 0, in float32 whatever the weights' type."""

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        super().__init__()
        text = model.model.language_model
        self.norm = text.layers[0].input_layernorm
        self.attention = text.layers[0].self_attn
        self.rotary = text.rotary_emb

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Attention weights; see `foveate.export.compressor.Probe`."""
        query = self.rotated(queries, query_positions, self.attention.q_proj)
        key = self.rotated(keys, key_positions, self.attention.k_proj)
        groups, width = key.shape[0], key.shape[2]
        query = query.reshape(groups, -1, width)
        scores = torch.matmul(query, key.transpose(1, 2)) * self.attention.scaling
        scores = scores.reshape(-1, mask.shape[0], mask.shape[1])
        return torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)

    def rotated(self, embeds: Tensor, positions: Tensor, projection: nn.Linear) -> Tensor:
        """Normalise, project and rotate rows [N, H] into heads float32 [heads, N, head_dim]."""
        hidden = self.norm(embeds.float())
        states = nn.functional.linear(hidden, projection.weight.float(), projection.bias.float())
        states = states.reshape(1, hidden.shape[0], -1, self.attention.head_dim).transpose(1, 2)
        cos, sin = self.rotary(hidden, positions[:, None])
        turned: Tensor = apply_rotary_pos_emb(states, states, cos, sin)[0]
        return turned[0]


class Decoder(nn.Module):
    """One step of the language model over a growing cache; prefill is a step with an empty cache."""

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        super().__init__()
        self.text = model.model.language_model
        self.head = model.lm_head

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        past: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Logits float32 [B, V] of the last token, then the cache's keys and values by layer.

        Args:
            inputs_embeds: [B, S, H].
            position_ids: int64 [3, B, S].
            attention_mask: int64 [B, P + S], 0 where a token is padding.
            past: For each layer keys, then values, [B, kv_heads, P, head_dim].
        """
        cache = DynamicCache(list(zip(past[0::2], past[1::2], strict=True)))
        total = torch.arange(attention_mask.shape[1], device=inputs_embeds.device)
        rows = total[attention_mask.shape[1] - inputs_embeds.shape[1] :]
        seen = (total[None, :] <= rows[:, None])[None, None] & (attention_mask[:, None, None] > 0)
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        hidden = self.text(
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            attention_mask={"full_attention": mask},
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = self.head(hidden[:, -1]).float()
        present = [state for layer in cache.layers for state in (layer.keys, layer.values)]
        return logits, *present
