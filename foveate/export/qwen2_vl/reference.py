"""Transformers' own eager Qwen2-VL, run on a fixed request: what the graphs are held against."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, Qwen2VLForConditionalGeneration

from foveate.calibration.qwen2_vl import visual_tokens
from foveate.export.parity import Case, check_selection
from foveate.families.base import Family, Prompt
from foveate.modeling.f_theta import FTheta
from foveate.runtime.language.base import state_names

QUESTION = "What can be seen in the two pictures?"


@torch.no_grad()
def reference(
    model: Qwen2VLForConditionalGeneration, network: FTheta | None, family: Family
) -> list[Case]:
    """Run two unequal pictures and a question through the model, and note what each graph must give."""
    model.set_attn_implementation("eager")
    vision = family.preprocess(pictures())
    prompt = family.layout(QUESTION, vision)
    visual = visual_tokens(model, vision)
    cases = [Case("vision", vision.feeds, {"visual_embeds": host(visual)})]

    text_index = prompt.text_index
    text_ids = prompt.token_ids[text_index]
    text = model.model.language_model.embed_tokens(torch.from_numpy(text_ids))
    cases.append(Case("embeddings", {"token_ids": text_ids}, {"text_embeds": host(text)}))

    embeds = torch.empty(len(prompt.token_ids), text.shape[1], dtype=text.dtype)
    embeds[text_index] = text
    embeds[prompt.visual_index] = visual
    cases.append(compressor_case(model, network, prompt, embeds, text_index))
    cases.extend(decoder_cases(model, prompt, embeds))
    return cases


def compressor_case(
    model: Qwen2VLForConditionalGeneration,
    network: FTheta | None,
    prompt: Prompt,
    embeds: Tensor,
    text_index: NDArray[np.int64],
) -> Case:
    """A_v⁰ read off the first layer's own attention weights, ranked by f_θ or by itself."""
    attention = first_layer_attention(model, embeds, prompt)
    rows = attention[:, torch.from_numpy(prompt.instruction_index)]
    visual = torch.from_numpy(prompt.visual_index)
    if network is None:
        scores = rows.mean(dim=(0, 1))[visual]
        relevance = scores / scores.sum()
    else:
        scores = network(network.pool(rows)[None, ..., visual])[0]
        relevance = torch.softmax(scores, dim=-1)
    feeds: dict[str, NDArray[Any]] = {
        "text_embeds": host(embeds[text_index]),
        "visual_embeds": host(embeds[prompt.visual_index]),
        **prompt.compressor_feeds(len(prompt.visual_index) // 4),
    }
    expected = {"scores": host(scores), "relevance": host(relevance)}
    return Case("compressor", feeds, expected, check_selection)


def decoder_cases(
    model: Qwen2VLForConditionalGeneration, prompt: Prompt, embeds: Tensor
) -> list[Case]:
    """A prefill of the whole prompt, a step after it, and a prefill of a prompt with holes in it."""
    length = len(prompt.token_ids)
    holes = np.setdiff1d(np.arange(length), prompt.visual_index[::2])
    whole = np.arange(length)
    prefill, cache = decoder_case(model, embeds[whole][None], prompt.position_ids[:, whole], None)
    following = model.model.language_model.embed_tokens(torch.tensor([[5]]))
    step, _ = decoder_case(model, following, np.full((3, 1), prompt.next_position), cache)
    pruned, _ = decoder_case(model, embeds[holes][None], prompt.position_ids[:, holes], None)
    return [prefill, step, pruned]


def decoder_case(
    model: Qwen2VLForConditionalGeneration,
    embeds: Tensor,
    positions: NDArray[np.int64],
    past: list[Tensor] | None,
) -> tuple[Case, list[Tensor]]:
    """One call of the language model; the cache it leaves feeds the next."""
    text = model.config.text_config
    width = text.hidden_size // text.num_attention_heads
    if past is None:
        past = [
            torch.zeros(1, text.num_key_value_heads, 0, width, dtype=model.dtype)
            for _ in range(2 * text.num_hidden_layers)
        ]
    names = state_names(text.num_hidden_layers)
    feeds: dict[str, NDArray[Any]] = {
        "inputs_embeds": host(embeds),
        "position_ids": positions[:, None],
        "attention_mask": np.ones((1, past[0].shape[2] + embeds.shape[1]), dtype=np.int64),
        **{f"past.{name}": host(state) for name, state in zip(names, past, strict=True)},
    }
    cache = DynamicCache(list(zip(past[0::2], past[1::2], strict=True)))
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=torch.from_numpy(positions[:, None]),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    present = [state for layer in cache.layers for state in (layer.keys, layer.values)]
    expected = {"logits": host(model.lm_head(hidden[:, -1]).float())}
    expected |= {f"present.{name}": host(state) for name, state in zip(names, present, strict=True)}
    return Case("decoder", feeds, expected), present


def first_layer_attention(
    model: Qwen2VLForConditionalGeneration, embeds: Tensor, prompt: Prompt
) -> Tensor:
    """Layer 0's attention weights float32 [heads, T, T], caught as transformers computes them."""
    caught: list[Tensor] = []
    layer = model.model.language_model.layers[0].self_attn
    hook = layer.register_forward_hook(lambda _module, _inputs, outputs: caught.append(outputs[1]))
    try:
        model.model.language_model(
            inputs_embeds=embeds[None], position_ids=torch.from_numpy(prompt.position_ids[:, None])
        )
    finally:
        hook.remove()
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
