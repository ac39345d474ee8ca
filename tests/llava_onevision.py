"""Small random LLaVA-OneVision checkpoints, and transformers' own code run on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoTokenizer,
    DynamicCache,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from foveate.families.base import Medium, Message, Still, Video, opened
from tests import checkpoints

SIDE, PATCH = 54, 4
"""Tiles of 13 x 13 patches, two pixels of each side left over."""
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }} {% if message.content is string %}
{{ message.content }}{% else -%}
{%- for part in message.content if part.type == 'image' -%}<image>
{% endfor -%}
{%- for part in message.content if part.type == 'video' -%}<video>
{% endfor -%}
{%- for part in message.content if part.type == 'text' %}
{{ part.text }}
{%- endfor -%}
{%- endif -%}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""
"""Like the published one: pictures of a turn, then its videos, then its text."""


def pinpoints(side: int, most: int = 6) -> list[list[int]]:
    """All heights and widths of so many tiles along a side."""
    return [
        [side * down, side * across] for down in range(1, most + 1) for across in range(1, most + 1)
    ]


def write_checkpoint(
    folder: Path,
    *,
    side: int = SIDE,
    patch: int = PATCH,
    hidden: int = 64,
    layers: int = 2,
    vision_width: int = 24,
    vision_layers: int = 2,
    feature_layer: int = -1,
    aspect: str = "anyres_max_9",
    context: int = 16384,
    seed: int = 0,
) -> Path:
    """Write a checkpoint of random weights with all 36 pinpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    eos, image, video = map(tokenizer.token_to_id, ("<|im_end|>", "<image>", "<video>"))
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 512, "max_position_embeddings": context, "bos_token_id": None,
            "eos_token_id": eos, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": vision_width,
            "intermediate_size": 40, "num_hidden_layers": vision_layers, "num_attention_heads": 2,
            "image_size": side, "patch_size": patch, "vision_use_head": False,
        },
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=pinpoints(side),
        vision_feature_layer=feature_layer,
        vision_aspect_ratio=aspect,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                # Sharp attention, so that the answer hangs on what is seen.
                sharp = name.endswith(("q_proj.weight", "k_proj.weight"))
                weight.normal_(std=0.5 if sharp else 0.15)
    model.generation_config.update(eos_token_id=[eos], bos_token_id=None, do_sample=False)
    model.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"})
    )
    processor = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_grid_pinpoints": pinpoints(side),
        "image_mean": [0.5, 0.4, 0.6], "image_std": [0.5, 0.6, 0.5], "resample": 3, "do_pad": True,
        "size": {"height": side, "width": side},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def train_tokenizer() -> Tokenizer:
    """A tokenizer with LLaVA-OneVision's control tokens."""
    return checkpoints.train_tokenizer(TEMPLATE, CONTROL)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of random levels."""
    random = np.random.default_rng([height, width, seed])
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def film(frames: int, height: int = 40, width: int = 70) -> Video:
    """A video of random levels."""
    return Video(tuple(noise(height, width, seed) for seed in range(1, frames + 1)))


class Processor(LlavaOnevisionProcessor):
    """The reference without a video processor, which would need torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
        """Take any part as it is."""
        return type(argument)

    def validate_inputs(self, **_: Any) -> None:
        """Take text whose videos are written out already."""


@dataclass(slots=True)
class Request:
    """A request as transformers' own processor prepares it, its frames, and its visual tokens."""

    inputs: dict[str, Tensor]
    videos: list[Tensor]
    visual: NDArray[np.int64]
    visual_embeds: Tensor


class Reference:
    """Transformers' eager checkpoint in float32."""

    def __init__(self, folder: Path) -> None:
        self.model = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.pictures = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
        config = self.model.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        self.processor = Processor(
            self.pictures, AutoTokenizer.from_pretrained(folder), None, num_image_tokens=patches,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            vision_aspect_ratio=config.vision_aspect_ratio, chat_template=TEMPLATE,
        )  # fmt: skip
        self.stops = set(self.model.generation_config.eos_token_id)

    def frames(self, video: Video) -> Tensor:
        """A video's frames [1, F, 3, side, side], each as the image processor gives a whole picture."""
        shown = [
            self.pictures([[opened(frame)]], return_tensors="pt")["pixel_values"][0, 0]
            for frame in video.frames
        ]
        return torch.stack(shown)[None]

    def inputs(self, messages: Sequence[Message], media: Sequence[Medium]) -> dict[str, Tensor]:
        """What the processor gives the model; a video's placeholders are written out here."""
        stills: list[Still] = [one for one in media if not isinstance(one, Video)]
        videos = [self.frames(one) for one in media if isinstance(one, Video)]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        pooled = -(-int(self.processor.num_image_tokens**0.5) // 2)
        for video in videos:
            text = text.replace("<video>", "<hole>" * (video.shape[1] * pooled**2 + 1), 1)
        text = text.replace("<hole>", "<video>")
        images = [[opened(one) for one in stills]] if stills else None
        inputs = dict(self.processor(text=[text], images=images, return_tensors="pt"))
        # transformers takes several videos of one length only.
        if len({video.shape for video in videos}) == 1:
            inputs["pixel_values_videos"] = torch.cat(videos)
        return inputs

    @torch.no_grad()
    def prepare(self, messages: Sequence[Message], media: Sequence[Medium]) -> Request:
        """A request's inputs, and its visual tokens in the prompt's order."""
        inputs, model = self.inputs(messages, media), self.model.model
        videos = [self.frames(one) for one in media if isinstance(one, Video)]
        ids = inputs["input_ids"][0].numpy()
        slots = {
            kind: np.flatnonzero(ids == token)
            for kind, token in (
                ("image", model.config.image_token_id), ("video", model.config.video_token_id),
            )
        }  # fmt: skip
        found: list[tuple[NDArray[np.int64], Tensor]] = []
        if "pixel_values" in inputs:
            parts = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
            number = inputs["batch_num_images"]
            rows = model.get_image_features(**parts, batch_num_images=number).pooler_output
            found.append((slots["image"], torch.cat(list(rows))))
        if videos:
            rows = [model.get_video_features(one).pooler_output[0] for one in videos]
            found.append((slots["video"], torch.cat(rows)))
        places = np.concatenate([np.empty(0, np.int64), *(place for place, _ in found)])
        rows = torch.cat(
            [torch.empty(0, model.config.text_config.hidden_size), *(r for _, r in found)]
        )
        order = np.argsort(places)
        return Request(inputs, videos, places[order], rows[torch.from_numpy(order)])

    @torch.no_grad()
    def generate(self, request: Request, most: int) -> list[int]:
        """Greedy tokens of `generate`, stop token dropped."""
        found = self.model.generate(**request.inputs, max_new_tokens=most, do_sample=False)
        return self.without_stop(found[0, request.inputs["input_ids"].shape[1] :].tolist())

    @torch.no_grad()
    def generate_kept(self, request: Request, kept: NDArray[np.int64], most: int) -> list[int]:
        """Greedy tokens when only the visual tokens at places `kept` of all are left, at their own positions."""
        model, ids = self.model.model, request.inputs["input_ids"]
        embeds = model.language_model.embed_tokens(ids)
        embeds[0, request.visual] = request.visual_embeds
        length = ids.shape[1]
        index = np.setdiff1d(np.arange(length), np.delete(request.visual, kept))
        states, places = embeds[:, index], torch.from_numpy(index)[None]
        cache, tokens = DynamicCache(), []
        while len(tokens) < most:
            hidden = model.language_model(
                inputs_embeds=states, position_ids=places, past_key_values=cache, use_cache=True
            ).last_hidden_state
            tokens.append(int(self.model.lm_head(hidden[0, -1]).argmax()))
            if tokens[-1] in self.stops:
                break
            states = model.language_model.embed_tokens(torch.tensor([tokens[-1:]]))
            places = torch.full((1, 1), length + len(tokens) - 1)
        return self.without_stop(tokens)

    def without_stop(self, tokens: list[int]) -> list[int]:
        """Tokens before the first stop token."""
        stop = next((i for i, token in enumerate(tokens) if token in self.stops), len(tokens))
        return tokens[:stop]
