"""A⁰: the first layer's attention from the instruction to the visual tokens (paper, section 3.3)."""

import torch
from torch import Tensor

from foveate.modeling.language_model import Language, Trace


def first_layer_attention(
    language: Language, embeds: Tensor, positions: Tensor, instruction: Tensor, visual: Tensor
) -> Tensor:
    """Attention weights of layer 0, in float32 whatever the model computes in.

    Args:
        language: The language model.
        embeds: [1, T, H], the whole prompt.
        positions: int64 [A, T].
        instruction: int64 [N_u], where the instruction's tokens stand.
        visual: int64 [N_v], where the visual tokens stand.

    Returns:
        float32 [heads, N_u, N_v]; its mean over heads and instruction is A_v⁰.
    """
    trace = Trace()
    rotation = language.rotation(embeds, positions)
    language.layers[0](embeds, attention_mask=None, position_embeddings=rotation, trace=trace)
    query = trace.query[0, :, instruction].float()
    key = trace.key[0].float().repeat_interleave(query.shape[0] // trace.key.shape[1], 0)
    scores = query @ key.mT * trace.scaling
    unseen = torch.arange(embeds.shape[1], device=embeds.device) > instruction[:, None]
    weights: Tensor = scores.masked_fill(unseen, float("-inf")).softmax(-1)
    return weights[:, :, visual]
