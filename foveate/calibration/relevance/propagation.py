"""R_v: what each token of a sequence meant for the tokens that were generated (paper, Eq. 1).

Eq. 1 updates a matrix R layer by layer, and only its last row is wanted: a row vector v that starts
as e_last and goes from the last layer down, v ← v + v·E_h(A ⊙ ∇A). No matrix of N² is ever whole:
with O = A·V the gradient is ∇A = ∇O·Vᵀ, so that (v·(A ⊙ ∇A))_j = V_j · (Aᵀ(v ⊙ ∇O))_j, which is
attention's own backward pass for V; the other modes take rows in blocks.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot, scaled_dot_product_attention

from foveate.modeling.language_model import Language, Trace

Mode = Literal["grad", "grad-clamp", "mean"]
MODES: tuple[Mode, ...] = ("grad", "grad-clamp", "mean")
BLOCK_BYTES = 1 << 28
TOKENS_AT_ONCE = 8


def relevance(
    language: Language, embeds: Tensor, positions: Tensor, tokens: Tensor, mode: Mode = "grad"
) -> Tensor:
    """Relevance of every token of a sequence to the tokens that end it, averaged over those.

    The score that is differentiated is the logit of each generated token, at the row before it.

    Args:
        language: The language model, of L layers.
        embeds: [1, N, H], the prompt and after it the generated tokens' rows.
        positions: int64 [A, N].
        tokens: int64 [T], the generated tokens, T ≥ 1.
        mode: "grad" is Eq. 1; "grad-clamp" drops negative products before the mean over heads, as
            Chefer's public code does; "mean" leaves gradients out (Table 5).

    Returns:
        float32 (float64 for a float64 model) [N]; a generated token's own place counts its own e.

    Memory grows with N: the layers' inputs and one layer's activations, and with TOKENS_AT_ONCE.
    """
    with torch.no_grad():
        states = list(language.states(embeds, positions))
    count = len(tokens)
    rows = torch.arange(embeds.shape[1] - count - 1, embeds.shape[1] - 1, device=embeds.device)
    exact = torch.promote_types(embeds.dtype, torch.float32)
    total = torch.zeros(embeds.shape[1], dtype=exact, device=embeds.device)
    rotation = language.rotation(embeds, positions)
    for begin in range(0, count, TOKENS_AT_ONCE):
        some = slice(begin, begin + TOKENS_AT_ONCE)
        total += _backward(language, states, rotation, rows[some], tokens[some], mode).sum(0)
    return total / count


def _backward(
    language: Language,
    states: list[Tensor],
    rotation: tuple[Tensor, Tensor],
    rows: Tensor,
    tokens: Tensor,
    mode: Mode,
) -> Tensor:
    """The last row of R for each of some generated tokens, [t, N], each read at its own row."""
    gradients = _logit_gradients(language, states[-1], rows, tokens) if mode != "mean" else None
    exact = torch.promote_types(states[0].dtype, torch.float32)
    relevant = one_hot(rows, states[0].shape[1]).to(exact)
    for number in range(len(language.layers) - 1, -1, -1):
        state = states[number].detach().requires_grad_(mode != "mean")
        trace = Trace()
        with torch.set_grad_enabled(mode != "mean"):
            output = language.layers[number](
                state, attention_mask=None, position_embeddings=rotation, trace=trace
            )
        for index in range(len(rows)):
            mixed = None
            if gradients is not None:
                below, mixed = torch.autograd.grad(
                    output, (state, trace.output), gradients[index][None], retain_graph=True
                )
                gradients[index] = below[0]
            product = _product if mode == "grad" else _product_in_blocks
            relevant[index] += product(trace, relevant[index], mixed)
    return relevant


def _logit_gradients(language: Language, last: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Each token's logit differentiated by the last layer's output: [t, N, H], one row each."""
    read = last[0, rows].detach().requires_grad_()
    with torch.enable_grad():
        logits = language.logits(read).gather(1, tokens[:, None])
        (gradient,) = torch.autograd.grad(logits.sum(), read)
    gradients = last.new_zeros(len(rows), *last.shape[1:])
    gradients[torch.arange(len(rows)), rows] = gradient
    return gradients


@torch.no_grad()
def _product(trace: Trace, relevant: Tensor, gradient: Tensor | None) -> Tensor:
    """v·E_h(A ⊙ ∇A) by attention's backward pass; v [N], ∇O [1, heads, N, D]."""
    assert gradient is not None
    value = trace.value.detach().requires_grad_()
    with torch.enable_grad():
        query, key = trace.query.detach(), trace.key.detach()
        output = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=trace.scaling, enable_gqa=True
        )
        upstream = gradient * relevant[:, None].to(gradient.dtype)
        (mixed,) = torch.autograd.grad(output, value, upstream)
    exact = relevant.dtype
    return (mixed.to(exact) * value.to(exact)).sum((0, 1, 3)) / trace.query.shape[1]


@torch.no_grad()
def _product_in_blocks(trace: Trace, relevant: Tensor, gradient: Tensor | None) -> Tensor:
    """v·E_h(max(A ⊙ ∇A, 0)), or v·E_h(A) without a gradient.

    A is computed some rows at a time; rows where v is 0 are left out.
    """
    exact = relevant.dtype
    heads, length = trace.query.shape[1:3]
    query = trace.query[0].to(exact)
    key, value = (
        grouped[0].detach().to(exact).repeat_interleave(heads // grouped.shape[1], 0)
        for grouped in (trace.key, trace.value)
    )
    start, stop = int(relevant.nonzero()[0]), int(relevant.nonzero()[-1]) + 1
    height = max(1, BLOCK_BYTES // (heads * length * exact.itemsize))
    total = torch.zeros_like(relevant)
    for top in range(start, stop, height):
        rows = slice(top, min(top + height, stop))
        scores = query[:, rows] @ key[:, : rows.stop].mT * trace.scaling
        place = torch.arange(rows.stop, device=key.device)
        scores.masked_fill_(place > place[rows, None], float("-inf"))
        weights = scores.softmax(-1)
        if gradient is not None:
            mixed = gradient[0, :, rows].to(exact) @ value[:, : rows.stop].mT
            weights = (weights * mixed).clamp_(min=0)
        total[: rows.stop] += relevant[rows] @ weights.mean(0)
    return total
