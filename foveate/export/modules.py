"""The modules that become graphs, built from a language model's own layers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from foveate.modeling.language_model import Language, cache_states, make_cache, rotation


class FirstLayerProbe(nn.Module):
    """Attention weights of the language model's layer 0, in float32 whatever the weights' type."""

    def __init__(self, language: Language) -> None:
        super().__init__()
        first: Any = language.layers[0]
        self.norm = first.input_layernorm
        self.attention = first.self_attn
        self.rotary = language.rotary

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Attention weights float32 [heads, U, T] of U queries over T keys; `mask` bool [U, T] is what they see."""
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
        bias = None if projection.bias is None else projection.bias.float()
        states = nn.functional.linear(hidden, projection.weight.float(), bias)
        states = states.reshape(1, hidden.shape[0], -1, self.attention.head_dim).transpose(1, 2)
        cos, sin = rotation(self.rotary, hidden, positions)
        turned: Tensor = apply_rotary_pos_emb(states, states, cos, sin)[0]
        return turned[0]


class Decoder(nn.Module):
    """One step of the language model over a growing cache; prefill is a step with an empty cache.

    Its layers must compute attention by `GROUPED`.
    """

    def __init__(self, language: Language) -> None:
        super().__init__()
        self.language = language

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        past: Mapping[str, Tensor],
    ) -> tuple[Tensor, ...]:
        """Logits float32 [B, V] of the last token, then the cache's keys and values by layer.

        Args:
            inputs_embeds: [B, S, H].
            position_ids: int64 [A, B, S].
            attention_mask: int64 [B, P + S], 0 where a token is padding.
            past: For each layer keys, then values, [B, kv_heads, P, head_dim].
        """
        cache = make_cache(list(past.values()))
        total = torch.arange(attention_mask.shape[1], device=inputs_embeds.device)
        places = total[attention_mask.shape[1] - inputs_embeds.shape[1] :]
        seen = (total[None, :] <= places[:, None])[None, None] & (attention_mask[:, None, None] > 0)
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        hidden = self.language.last_state(
            inputs_embeds, position_ids, attention_mask=mask, past_key_values=cache, use_cache=True
        )
        logits = self.language.logits(hidden[:, -1]).float()
        return logits, *cache_states(cache)
