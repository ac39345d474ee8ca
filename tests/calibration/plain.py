"""Eq. 1 as it stands: whole matrices, autograd through transformers' own eager model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Float32 sums of a few hundred terms over six layers, against float64: 1e-6 is usual.
TOLERANCE = 1e-5


def close(found: Tensor, wanted: Tensor) -> bool:
    """Within the tolerance of the largest magnitude."""
    wanted = wanted.double()
    return bool((found.double() - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


def plain_relevance(
    model: Any, head: Any, embeds: Tensor, positions: Tensor, tokens: Sequence[int], mode: str
) -> Tensor:
    """The last rows of R_t averaged over t, [N] for embeds [1, N, H] that end in the T tokens' rows.

    Each R_t is made from its own forward pass over what stood before token t.
    """
    total = torch.zeros(embeds.shape[1], dtype=embeds.dtype, device=embeds.device)
    begin = embeds.shape[1] - len(tokens)
    for number, token in enumerate(tokens):
        length = begin + number
        maps = attention_maps(
            model, head, embeds[:, :length], positions[..., :length], token, mode == "mean"
        )
        relevance = torch.eye(length, dtype=embeds.dtype, device=embeds.device)
        for attention, gradient in maps:
            weighed = attention if gradient is None else attention * gradient
            weighed = weighed.clamp(min=0) if mode == "grad-clamp" else weighed
            relevance = relevance + weighed.mean(0) @ relevance
        total[:length] += relevance[-1]
    return total / len(tokens)


def attention_maps(
    model: Any, head: Any, embeds: Tensor, positions: Tensor, token: int, plain: bool
) -> list[tuple[Tensor, Tensor | None]]:
    """A^l and ∇A^l [heads, N, N] of every layer, first layer first, for one token's logit."""
    caught: list[Tensor] = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _m, _i, outputs: caught.append(outputs[1]))
        for layer in model.layers
    ]
    try:
        with torch.set_grad_enabled(not plain):
            states = model(
                inputs_embeds=embeds.detach().requires_grad_(not plain), position_ids=positions
            ).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    if plain:
        return [(attention[0], None) for attention in caught]
    logit = head(states[0, -1])[token]
    gradients = torch.autograd.grad(logit, caught)
    return [(a[0].detach(), g[0]) for a, g in zip(caught, gradients, strict=True)]
