"""A language model taken layer by layer: run, cached, or retraced with its attention in hand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module, ModuleList
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache

TRACED = "foveate_traced"


def make_cache(states: Sequence[Tensor]) -> DynamicCache:
    """A cache that holds for each layer keys, then values, [B, kv_heads, P, head_dim]."""
    return DynamicCache(list(zip(states[0::2], states[1::2], strict=True)))


def cache_states(cache: DynamicCache) -> list[Tensor]:
    """What `make_cache` takes."""
    return [state for layer in cache.layers for state in (layer.keys, layer.values)]


@dataclass(slots=True)
class Trace:
    """What one layer's attention computed.

    Attributes:
        query: [1, heads, T, D], rotated.
        key: [1, kv_heads, T, D], rotated.
        value: [1, kv_heads, T, D].
        output: [1, heads, T, D], the mix of values before the output projection.
        scaling: The factor of query · key.
    """

    query: Tensor = field(init=False)
    key: Tensor = field(init=False)
    value: Tensor = field(init=False)
    output: Tensor = field(init=False)
    scaling: float = 0.0


def traced_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    trace: Trace | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention that never holds its weights, and notes its operands in `trace`."""
    output = scaled_dot_product_attention(
        query, key, value, is_causal=query.shape[2] > 1, scale=scaling, enable_gqa=True
    )
    if trace is not None:
        trace.query, trace.key, trace.value = query, key, value
        trace.output, trace.scaling = output, scaling
    return output.transpose(1, 2), None


AttentionInterface.register(TRACED, traced_attention)


def rotation(rotary: nn.Module, embeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, S, D] (of m-rope [A, B, S, D]) of rotary positions.

    Args:
        rotary: (states, positions) to both, as transformers has it.
        embeds: Whose dtype and device they get.
        positions: int64 [A, B, S], or [A, S] of one sequence; A rotary axes.
    """
    axes = positions if positions.dim() == 3 else positions[:, None]
    turned: tuple[Tensor, Tensor] = rotary(embeds, axes if len(axes) > 1 else axes[0])
    return turned


class Language(nn.Module):
    """The parts of a transformers decoder whose layers are like Llama's.

    Attributes:
        embedding: Token ids to rows.
        rotary: (states, positions) to the cosines and sines of rotary positions.
        layers: The decoder layers, in order.
        norm: After the last layer.
        head: Normed states to logits.
    """

    layers: ModuleList

    def __init__(
        self, embedding: Module, rotary: Module, layers: ModuleList, norm: Module, head: Module
    ) -> None:
        super().__init__()
        self.embedding, self.rotary, self.layers = embedding, rotary, layers
        self.norm, self.head = norm, head

    def rotation(self, embeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of embeds [B, S, H]; see `rotation`."""
        return rotation(self.rotary, embeds, positions)

    def states(self, embeds: Tensor, positions: Tensor, **options: Any) -> Iterator[Tensor]:
        """The input of each layer in turn, and last the output of the last; each [B, S, H].

        Without a mask this and `answer` are for layers that compute attention by `TRACED`.

        Args:
            embeds: [B, S, H].
            positions: int64 [A, B, S], or [A, S] of one sequence.
            options: What each layer takes besides, such as a mask or a cache.
        """
        options = {"attention_mask": None, **options}
        rotation = self.rotation(embeds, positions)
        hidden = embeds
        yield hidden
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotation, **options)
            yield hidden

    def last_state(self, embeds: Tensor, positions: Tensor, **options: Any) -> Tensor:
        """What the last layer gives, [B, S, H]; see `states`."""
        for hidden in self.states(embeds, positions, **options):  # noqa: B007
            pass
        return hidden

    def logits(self, state: Tensor) -> Tensor:
        """Logits [..., V] of states [..., H] after the last layer."""
        scores: Tensor = self.head(self.norm(state))
        return scores

    @torch.no_grad()
    def answers(
        self, embeds: Tensor, positions: Tensor, following: int, stops: set[int], most: int
    ) -> list[list[int]]:
        """Decode prompts of one length greedily, all together.

        Args:
            embeds: [B, T, H], prompts whole or with tokens dropped.
            positions: int64 [A, B, T], each token's own position.
            following: The position of the first new token, on every axis.
            stops: Tokens that end an answer; not part of it.
            most: The longest answer, in tokens.
        """
        cache = DynamicCache()
        said: list[list[int]] = [[] for _ in embeds]
        going = set(range(len(embeds)))
        while True:
            hidden = self.last_state(embeds, positions, past_key_values=cache, use_cache=True)
            tokens = self.logits(hidden[:, -1]).argmax(-1)
            for number, token in enumerate(tokens.tolist()):
                if token in stops or len(said[number]) == most:
                    going.discard(number)
                elif number in going:
                    said[number].append(token)
            if not going:
                return said
            embeds = self.embedding(tokens[:, None])
            positions = torch.full_like(positions[..., :1], following)
            following += 1
