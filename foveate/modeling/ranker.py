"""What ranks visual tokens by first-layer attention: f_θ, or the attention itself."""

import torch
from torch import Tensor, nn

from foveate.bundle.words import Words
from foveate.modeling.f_theta import FTheta
from foveate.modeling.word_weights import WordWeights


class Ranker(nn.Module):
    """Weighs the instruction's tokens, sums their attention up, and runs f_θ over it where there is one.

    Attributes:
        words: How the instruction's tokens are weighed.
        network: f_θ; None ranks by the sum itself.
    """

    def __init__(self, network: FTheta | None = None, words: Words = "mean") -> None:
        """Rank by a network, whose own weights of words count; without one by `words`."""
        super().__init__()
        self.network = network
        self.words = WordWeights(words) if network is None else network.words

    def forward(self, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Rank one request's visual tokens.

        Args:
            attention: float32 [heads, N_u, N_v], from each instruction token to each visual token.

        Returns:
            Scores float32 [N_v], what the ranking goes by: f_θ's logits, or A_v⁰ or what takes its
            place; and relevance float32 [N_v], a distribution.

        Raises:
            CheckpointError: f_θ reads the heads of another model.
        """
        if self.network is None:
            scores = self.words.pool(attention)
            return scores, scores / scores.sum()
        scores = self.network(self.network.pool(attention)[None])[0]
        return scores, torch.softmax(scores[None], dim=-1)[0]
