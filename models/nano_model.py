"""The nano checkpoint's forward pass for training: packed batches of pictures of one size."""

from collections.abc import Callable

import torch
from nano_checkpoint import SYSTEM
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_vision,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Nano(nn.Module):
    """The checkpoint's own weights; a row is a prompt prefix and segments of a question each.

    A segment sees the prefix and itself, and its positions start where the prefix ends, so that each
    is exactly what a request for it alone would be.
    """

    def __init__(self, model: Qwen2VLForConditionalGeneration, tokenizer: Tokenizer) -> None:
        """Train `model`'s weights in place."""
        super().__init__()
        self.model = model
        self.vision_block: Callable[..., Tensor] = vision_block
        self.text_block: Callable[..., Tensor] = text_block
        start = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
        self.register_buffer("before", torch.tensor(encode(start)), persistent=False)
        self.register_buffer("after", torch.tensor(encode("<|vision_end|>")), persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(STD), persistent=False)

    def vision(self, images: Tensor) -> Tensor:
        """Visual tokens [B, N, H] of pictures uint8 [B, H, W, 3]."""
        batch, height, width, _ = images.shape
        high, wide = height // 14, width // 14
        tower = self.model.model.visual
        pixels = ((images.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        pixels = pixels.reshape(batch, 3, high // 2, 2, 14, wide // 2, 2, 14)
        pixels = pixels.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, high * wide, -1)
        kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)
        hidden = functional.linear(pixels, kernel)
        place = torch.stack(
            torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij"), dim=-1
        ).to(images.device)
        place = place.reshape(high // 2, 2, wide // 2, 2, 2).permute(0, 2, 1, 3, 4).reshape(-1, 2)
        cos, sin = tower.rotary_pos_emb(hidden, place)
        for block in tower.blocks:
            hidden = self.vision_block(block, hidden, cos, sin)
        merger = tower.merger
        return merger.mlp(merger.ln_q(hidden).reshape(batch, high * wide // 4, -1))

    def pack(
        self, visual: Tensor, kept: Tensor, columns: int, high: int, text: tuple[Tensor, ...]
    ) -> "Packed":
        """Rows ready for the language model.

        Args:
            visual: [R, K, H], the visual tokens that are left.
            kept: int64 [R, K], which of the picture's they are.
            columns: The picture's visual tokens in a row of its grid.
            high: The larger side of its grid.
            text: int64 [R, T] each: token ids, segments from 1 (0 for padding), places in a segment.
        """
        ids, segments, places = text
        words = self.model.model.language_model.embed_tokens
        rows, device = len(ids), ids.device
        before, after = len(self.before), len(self.after)
        prefix = before + kept.shape[1] + after
        spare = -(prefix + ids.shape[1]) % 8
        ids, segments, places = (functional.pad(part, (0, spare)) for part in text)
        embeds = torch.cat(
            [
                words(self.before).expand(rows, -1, -1).to(visual.dtype),
                visual,
                words(self.after).expand(rows, -1, -1).to(visual.dtype),
                words(ids).to(visual.dtype),
            ],
            dim=1,
        )
        jump = before + high
        grid = torch.stack([torch.zeros_like(kept), kept // columns, kept % columns]) + before
        head = torch.arange(before, device=device).expand(3, rows, -1)
        tail = (jump + torch.arange(after, device=device)).expand(3, rows, -1)
        asked = (jump + after + places).expand(3, -1, -1)
        positions = torch.cat([head, grid, tail, asked], dim=2)
        segment = torch.cat([segments.new_zeros(rows, prefix), segments], dim=1)
        real = torch.cat([segments.new_ones(rows, prefix), segments], dim=1) > 0
        order = torch.arange(segment.shape[1], device=device)
        own = segment[:, None, :] == segment[:, :, None]
        shared = (segment[:, None, :] == 0) & real[:, None, :]
        mask = (own | shared) & (order[None, :] <= order[:, None])
        rotation = self.model.model.language_model.rotary_emb(embeds, positions)
        return Packed(
            embeds, rotation, mask[:, None], slice(before, before + kept.shape[1]), prefix
        )

    def language(self, packed: "Packed") -> list[Tensor]:
        """States before layer 0, after it, and so on to the last, each [R, T, H]."""
        states = [packed.embeds]
        for layer in self.model.model.language_model.layers:
            states.append(self.text_block(layer, states[-1], *packed.rotation, packed.mask))
        return states

    def logits(self, packed: "Packed", state: Tensor, length: int) -> Tensor:
        """Logits [R, length, V] of the text after the prefix."""
        text = self.model.model.language_model
        return self.model.lm_head(text.norm(state[:, packed.prefix : packed.prefix + length]))

    def looks(self, packed: "Packed", state: Tensor, layer: int, length: int) -> Tensor:
        """The attention of text on visual tokens in a layer, [R, length, K], mean over heads."""
        module = self.model.model.language_model.layers[layer]
        attention = module.self_attn
        states = module.input_layernorm(state)
        query, key = (
            project(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
        query, key = rotated(query, key, *packed.rotation)
        rows = slice(packed.prefix, packed.prefix + length)
        key = key.repeat_interleave(attention.num_key_value_groups, 1)
        scores = query[:, :, rows] @ key.mT * attention.head_dim**-0.5
        scores = scores.float().masked_fill(~packed.mask[:, :, rows], float("-inf"))
        return scores.softmax(-1)[..., packed.visual].mean(1)


class Packed:
    """Rows ready for the language model: embeds, rotation, mask, where visual tokens stand."""

    def __init__(
        self,
        embeds: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        visual: slice,
        prefix: int,
    ) -> None:
        self.embeds, self.rotation, self.mask = embeds, rotation, mask
        self.visual, self.prefix = visual, prefix


def vision_block(block: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One layer of the vision tower over pictures of one size, [B, P, C]."""
    query, key, value = (
        block.attn.qkv(block.norm1(hidden)).unflatten(-1, (3, block.attn.num_heads, -1)).unbind(2)
    )
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    mixed = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    hidden = hidden + block.attn.proj(mixed.transpose(1, 2).flatten(2))
    return hidden + block.mlp(block.norm2(hidden))


def text_block(layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    """One layer of the language model over packed rows, [R, T, H]."""
    attention = layer.self_attn
    states = layer.input_layernorm(hidden)
    query, key, value = (
        project(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = rotated(query, key, cos, sin)
    groups = attention.num_key_value_groups
    mixed = functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        attn_mask=mask,
    )
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def rotated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key with their positions."""
    query, key = apply_rotary_pos_emb(query, key, cos.to(query.dtype), sin.to(query.dtype))
    return query, key
