"""What each token of the instruction counts where their attention to the visual tokens is summed up."""

import torch
from torch import Tensor, nn

from foveate.bundle.words import Words

SHARPNESS = 6.0
"""Of "unusual": a token's weight is its divergence to this power."""
NOISE = 1.5
"""A divergence below so many times the mean one counts as that: such tokens tell nothing apart."""
SMOOTHING = 1e-4
"""Added to shares, of which even attention gives every visual token 1, before logarithms."""
LEAST = 1e-3
"""Added to statistics before logarithms."""
NOTHING = 1e-12
"""Keeps a token that attends to no visual token from being divided by 0."""
STATISTICS = ("divergence", "mass", "peak")
"""Of each token: how far its attention is from usual, how much goes to visual tokens, and the most to one."""


class WordWeights(nn.Module):
    """Weighs an instruction's tokens by how far each one's attention is from what is usual for them.

    Usual is the mean over the instruction: *what*, *the* and *is* attend to about the same visual
    tokens whatever is asked, and most tokens are such. What a token attends to is taken as a
    distribution over visual tokens.

    Attributes:
        form: "mean" counts all alike, as the paper does; "unusual" weighs a token by its divergence from
            the usual to the power of `SHARPNESS`, without training; "learned" weighs it by the softmax of
            `slopes` times the logarithms of its `STATISTICS`.
        slopes: float32 [len(STATISTICS)], of "learned" alone.
    """

    def __init__(self, form: Words = "mean") -> None:
        super().__init__()
        self.form = form
        if form == "learned":
            self.slopes = nn.Parameter(torch.tensor([SHARPNESS, *[0.0] * (len(STATISTICS) - 1)]))

    def forward(self, attention: Tensor) -> Tensor:
        """What each token counts.

        Args:
            attention: float32 [N_u, N_v], first-layer attention to visual tokens, averaged over heads.

        Returns:
            float32 [N_u], their sum 1.
        """
        if self.form == "mean":
            return attention.new_full((attention.shape[0],), 1 / attention.shape[0])
        shares = attention_shares(attention)
        far = divergences(shares)
        far = torch.maximum(far, NOISE * far.mean(0, keepdim=True))
        if self.form == "unusual":
            return torch.softmax(SHARPNESS * (far[None] + LEAST).log(), -1)[0]
        found = torch.stack([far, attention.sum(1), shares.amax(1)])
        return torch.softmax(self.slopes[None] @ (found + LEAST).log(), -1)[0]

    def pool(self, attention: Tensor, *, apart: bool = False) -> Tensor:
        """Sum first-layer attention up over the instruction, each token by its weight.

        The paper's form takes attention as it is; the others take each token's as a distribution, so
        that how much of it goes to visual tokens does not count.

        Args:
            attention: float32 [heads, N_u, N_v].
            apart: Leave heads apart.

        Returns:
            float32 [N_v], A_v⁰ or what takes its place; [heads, N_v] of heads apart.
        """
        if self.form == "mean":
            return attention.mean(1 if apart else (0, 1))
        words = attention.mean(0)
        factors = self(words) / (words.sum(1) + NOTHING)
        summed: Tensor = factors @ (attention if apart else words)
        return summed


def attention_shares(attention: Tensor) -> Tensor:
    """Attention [N_u, N_v] as multiples of what even attention gives each visual token."""
    return attention * (attention.shape[1] / (attention.sum(1, keepdim=True) + NOTHING))


def divergences(shares: Tensor) -> Tensor:
    """How far each token's attention is from usual: KL float32 [N_u], in nats, of shares [N_u, N_v]."""
    usual = shares.mean(0, keepdim=True)
    return (shares * ((shares + SMOOTHING) / (usual + SMOOTHING)).log()).mean(1)
