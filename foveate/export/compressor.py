"""The compressor graph: probe, ranking, top-k and gather in one launch."""

from typing import Any

import torch
from torch import Tensor, nn

from foveate.export.modules import FirstLayerProbe
from foveate.modeling.ranker import Ranker

OUTPUTS = ("inputs_embeds", "kept_position_ids", "kept_indices", "relevance", "scores")


class Compressor(nn.Module):
    """Keeps the visual tokens that the instruction attends to (paper, section 3.3).

    Keys are taken as text first, then visual tokens: attention does not care for their order,
    and the places in the sequence (`*_index`) decide what each query may see.
    """

    def __init__(self, probe: FirstLayerProbe, ranker: Ranker) -> None:
        super().__init__()
        self.probe, self.ranker = probe, ranker

    def forward(
        self,
        text_embeds: Tensor,
        visual_embeds: Tensor,
        text_index: Tensor,
        visual_index: Tensor,
        instruction_rows: Tensor,
        position_ids: Tensor,
        keep: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Drop all but `keep` visual tokens from a prompt.

        Args:
            text_embeds: [N_t, H], the embedding rows of all text tokens (E_s and E_u).
            visual_embeds: [N_v, H], the vision graph's output E_v.
            text_index: int64 [N_t], where each text token stands in the prompt.
            visual_index: int64 [N_v], where each visual token stands in the prompt.
            instruction_rows: int64 [N_u], which rows of `text_embeds` are the instruction E_u.
            position_ids: int64 [A, N_t + N_v], rotary positions of the whole prompt.
            keep: int64 [1], how many visual tokens to keep.

        Returns:
            The kept prompt [1, N_t + K, H]; its original positions [A, 1, N_t + K]; the kept visual
            tokens' ordinals int64 [K], ascending; relevance float32 [N_v] (a softmax); scores float32
            [N_v], what the ranking used: f_θ's logits, or A_v⁰ without f_θ.
        """
        index = torch.cat([text_index, visual_index])
        embeds = torch.cat([text_embeds, visual_embeds])
        query_index = text_index.index_select(0, instruction_rows)
        attention = self.probe(
            text_embeds.index_select(0, instruction_rows),
            embeds,
            position_ids.index_select(1, query_index),
            position_ids.index_select(1, index),
            index[None, :] <= query_index[:, None],
        )
        scores, relevance = self.ranker(attention[:, :, text_index.shape[0] :])

        count: Any = keep.item()
        torch._check(count >= 1)  # type: ignore[no-untyped-call]
        torch._check(count <= scores.shape[0])  # type: ignore[no-untyped-call]
        best = torch.topk(scores, count).indices
        kept = torch.topk(best, count, largest=False).values
        prompt_index = torch.cat([text_index, visual_index.index_select(0, kept)])
        order = torch.argsort(prompt_index)
        rows = torch.cat([text_embeds, visual_embeds.index_select(0, kept)]).index_select(0, order)
        positions = position_ids.index_select(1, prompt_index.index_select(0, order))
        return rows[None], positions[:, None], kept, relevance, scores
