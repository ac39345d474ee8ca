"""Transformers' own eager code run on a fixed request: what the graphs are held against."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from foveate.bundle.manifest import EMBEDDINGS, GATHER
from foveate.export.parity import Case, check_selection
from foveate.families.base import Family, Medium, Prompt, Video, VisualInput, user_turn
from foveate.modeling.base import TorchFamily
from foveate.modeling.language_model import cache_states, make_cache
from foveate.modeling.ranker import Ranker
from foveate.runtime.language.base import state_names

QUESTION = "What can be seen in the two pictures?"


@torch.no_grad()
def reference(torch_half: TorchFamily, model: Any, ranker: Ranker, family: Family) -> list[Case]:
    """Run two unequal pictures and a question through a model, and note what each graph must give.

    Args:
        torch_half: The model's family.
        model: Loaded with eager attention.
        ranker: What ranks.
        family: The other half, made without `levels`.
    """
    media = pictures()
    visual = family.prepare(media)
    prompt = family.layout(user_turn(QUESTION, media), visual)
    visual_embeds = torch_half.encode(model, visual)
    features = torch_half.features(model, visual)
    language, text_ids = torch_half.language(model), prompt.token_ids[prompt.text_index]
    text_embeds = language.embedding(torch.from_numpy(text_ids))
    embeds = torch.empty(len(prompt.token_ids), text_embeds.shape[1], dtype=text_embeds.dtype)
    embeds[prompt.text_index] = text_embeds
    embeds[prompt.visual_index] = visual_embeds
    attention = first_layer_attention(torch_half, model, embeds, prompt)
    return [
        *vision_cases(visual, host(features)),
        *gather_cases(torch_half, model, family),
        Case(EMBEDDINGS, {"token_ids": text_ids}, {"text_embeds": host(text_embeds)}),
        compressor_case(attention, ranker, prompt, embeds),
        *decoder_cases(torch_half, model, prompt, embeds),
    ]


def vision_cases(visual: VisualInput, features: NDArray[Any]) -> list[Case]:
    """Each run of the vision graph, with those of all rows [R, H] that are its own."""
    ends = np.cumsum([call.tokens for call in visual.calls])
    return [
        Case("vision", dict(call.inputs), {"visual_embeds": features[end - call.tokens : end]})
        for call, end in zip(visual.calls, ends, strict=True)
    ]


def gather_cases(torch_half: TorchFamily, model: Any, family: Family) -> list[Case]:
    """Rows summed to the visual tokens of several pictures, of one, and of a video; none without taps."""
    if not torch_half.taps:
        return []
    first, second = pictures()
    several: tuple[list[Medium], ...] = ([first, second], [first], [Video((first, first))])
    found = []
    for media in several:
        visual = family.prepare(media)
        feeds = {"features": host(torch_half.features(model, visual))}
        assert visual.rows is not None and visual.weights is not None
        feeds |= {"rows": visual.rows, "weights": visual.weights}
        tokens = host(torch_half.encode(model, visual))
        found.append(Case(GATHER, feeds, {"visual_embeds": tokens}))
    return found


def compressor_case(attention: Tensor, ranker: Ranker, prompt: Prompt, embeds: Tensor) -> Case:
    """The first layer's own attention weights, ranked."""
    instruction = attention[:, torch.from_numpy(prompt.instruction_index)]
    scores, relevance = ranker(instruction[:, :, torch.from_numpy(prompt.visual_index)])
    feeds: dict[str, NDArray[Any]] = {
        "text_embeds": host(embeds[prompt.text_index]),
        "visual_embeds": host(embeds[prompt.visual_index]),
        "text_index": prompt.text_index,
        "visual_index": prompt.visual_index,
        "instruction_rows": prompt.instruction_rows,
        "position_ids": prompt.position_ids,
        "keep": np.array([len(scores) // 4], np.int64),
    }
    expected = {"scores": host(scores), "relevance": host(relevance)}
    return Case("compressor", feeds, expected, check_selection)


def decoder_cases(
    torch_half: TorchFamily, model: Any, prompt: Prompt, embeds: Tensor
) -> list[Case]:
    """A prefill of the whole prompt, a step after it, and a prefill of a prompt with holes in it."""
    facts, language = torch_half.facts(model), torch_half.language(model)
    names = state_names(facts.layers)

    def case(
        rows: Tensor, positions: NDArray[np.int64], past: list[Tensor]
    ) -> tuple[Case, list[Tensor]]:
        """One call of the language model, rows [1, S, H] at positions [A, S]; and the cache it leaves."""
        cache = make_cache(past)
        hidden = torch_half.decode(model, rows, torch.from_numpy(positions[:, None]), cache)
        present = cache_states(cache)
        feeds = {f"past.{name}": host(state) for name, state in zip(names, past, strict=True)} | {
            "inputs_embeds": host(rows),
            "position_ids": positions[:, None],
            "attention_mask": np.ones((1, past[0].shape[2] + rows.shape[1]), dtype=np.int64),
        }
        expected = {
            f"present.{name}": host(state) for name, state in zip(names, present, strict=True)
        }
        expected["logits"] = host(language.head(hidden[:, -1]).float())
        return Case("decoder", feeds, expected), present

    none = [embeds.new_zeros(1, facts.kv_heads, 0, facts.head_dim) for _ in names]
    prefill, past = case(embeds[None], prompt.position_ids, none)
    next_position = np.full((facts.rope.axes, 1), prompt.next_position)
    step, _ = case(language.embedding(torch.tensor([[5]])), next_position, past)
    holes = np.setdiff1d(np.arange(len(embeds)), prompt.visual_index[::2])
    pruned, _ = case(embeds[holes][None], prompt.position_ids[:, holes], none)
    return [prefill, step, pruned]


def first_layer_attention(
    torch_half: TorchFamily, model: Any, embeds: Tensor, prompt: Prompt
) -> Tensor:
    """Layer 0's attention weights float32 [heads, T, T], caught as transformers computes them."""
    caught: list[Tensor] = []
    layer: Any = torch_half.language(model).layers[0]
    positions = torch.from_numpy(prompt.position_ids[:, None])
    with layer.self_attn.register_forward_hook(lambda _m, _i, outputs: caught.append(outputs[1])):
        torch_half.decode(model, embeds[None], positions, DynamicCache())
    return caught[0][0].float()


def pictures() -> list[Image.Image]:
    """Two unequal pictures."""
    return [gradient(112, 168), gradient(140, 84)]


def gradient(height: int, width: int) -> Image.Image:
    """A picture with something different in every patch."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 // height, columns * 255 // width, (rows * columns) % 251]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def host(tensor: Tensor) -> NDArray[Any]:
    """To numpy; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach()
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
