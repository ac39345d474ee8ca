"""Qwen2-VL, as calibration needs it in torch."""

from collections.abc import Sequence

import torch
from msgspec.structs import replace
from PIL.Image import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from foveate.errors import CheckpointError
from foveate.families.base import Vision
from foveate.families.pixels import resize_bicubic, to_rgb
from foveate.families.qwen2_vl import Qwen2VL, fitted_size
from foveate.families.qwen2_vl_pixels import Pixels
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.language_model import TRACED, Language

END_OF_TURN = "<|im_end|>"


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Qwen2VLForConditionalGeneration:
    """Load the checkpoint's weights as `dtype`; its language model computes attention by `TRACED`.

    Raises:
        CheckpointError: Weights missing or unreadable, or sliding-window attention.
    """
    return weights(checkpoint, dtype, {"text_config": TRACED, "vision_config": "sdpa"})


def weights(
    checkpoint: Checkpoint, dtype: torch.dtype, attention: str | dict[str, str]
) -> Qwen2VLForConditionalGeneration:
    """Load the checkpoint's weights as `dtype`, to compute attention as transformers names it.

    Raises:
        CheckpointError: Weights missing or unreadable, or sliding-window attention.
    """
    try:
        model, report = Qwen2VLForConditionalGeneration.from_pretrained(
            checkpoint.root, dtype=dtype, attn_implementation=attention, output_loading_info=True
        )
    except Exception as error:
        raise CheckpointError(f"{checkpoint.name}: transformers cannot load it: {error}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise CheckpointError(
            f"{checkpoint.name}: {len(wrong)} weights are missing or of the wrong shape, {wrong[0]} first; "
            "download the checkpoint again"
        )
    check_attention(checkpoint, model)
    return model.eval()


def check_attention(checkpoint: Checkpoint, model: Qwen2VLForConditionalGeneration) -> None:
    """Refuse a model that does not see all tokens before.

    Raises:
        CheckpointError: Sliding-window attention.
    """
    if set(model.config.text_config.layer_types) != {"full_attention"}:
        raise CheckpointError(
            f"{checkpoint.name}: sliding-window attention is not supported; set use_sliding_window to false"
        )


def tokens(
    checkpoint: Checkpoint, model: Qwen2VLForConditionalGeneration, tokenizer: Tokenizer
) -> dict[str, int]:
    """Ids of the control tokens that the prompt layout needs.

    Raises:
        CheckpointError: The tokenizer has no end-of-turn token.
    """
    eos = tokenizer.token_to_id(END_OF_TURN)
    if eos is None:
        raise CheckpointError(f"{checkpoint.name}: the tokenizer has no {END_OF_TURN}")
    video = model.config.video_token_id
    return {
        "image": model.config.image_token_id,
        **({} if tokenizer.id_to_token(video) is None else {"video": video}),
        "vision_start": model.config.vision_start_token_id,
        "vision_end": model.config.vision_end_token_id,
        "eos": eos,
    }


def language(model: Qwen2VLForConditionalGeneration) -> Language:
    """The language model's parts."""
    text = model.model.language_model
    return Language(text.embed_tokens, text.rotary_emb, text.layers, text.norm, model.lm_head)


def visual_tokens(model: Qwen2VLForConditionalGeneration, vision: Vision) -> Tensor:
    """Visual tokens E_v [N_v, H] of prepared pictures."""
    merge = model.config.vision_config.spatial_merge_size
    grids = [(frames, rows * merge, columns * merge) for frames, rows, columns in vision.grids]
    pixels = torch.from_numpy(vision.feeds["pixel_values"]).to(model.device, model.dtype)
    tokens: Tensor = model.model.visual(
        pixels, torch.tensor(grids, device=model.device)
    ).pooler_output
    return tokens


def limited(family: Qwen2VL, pictures: Sequence[Image], most: Sequence[int]) -> Vision:
    """Prepare pictures made smaller, each to give at most so many visual tokens, at least one.

    They are fitted anew from the size that the checkpoint's own limits give them, so that a small
    picture, which those enlarge, is not left with the few tokens of its own size.

    Raises:
        ImageError: A picture that the family cannot take.
    """
    settings = family.settings
    unit = settings.patch_size * settings.merge_size
    least = min(settings.min_pixels, unit**2)
    smaller: list[Image] = []
    for number, (picture, count) in enumerate(zip(pictures, most, strict=True), start=1):
        limits = replace(settings, min_pixels=least, max_pixels=count * unit**2)
        whole = fitted_size(picture.height, picture.width, settings, number)
        height, width = (min(side, count * unit) for side in fitted_size(*whole, limits, number))
        smaller.append(resize_bicubic(to_rgb(picture, number), height, width))
    return Pixels(replace(settings, min_pixels=least)).preprocess(smaller)
