"""The nano checkpoint run by transformers, whole or with visual tokens dropped."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.conftest import NANO


@dataclass(slots=True)
class Request:
    """A request as transformers' own processor prepares it; its visual tokens once they are computed."""

    inputs: dict[str, Tensor]
    image_token: int
    visual_embeds: Tensor | None = None

    @property
    def visual(self) -> NDArray[np.int64]:
        """Where the visual tokens stand."""
        return np.flatnonzero((self.inputs["input_ids"][0] == self.image_token).numpy())


class Reference:
    """Transformers' eager nano checkpoint in float32."""

    def __init__(self) -> None:
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(
            NANO, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(NANO)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(NANO)
        self.stops = set(self.model.generation_config.eos_token_id)

    def prepare(self, question: str, pictures: list[Image.Image]) -> Request:
        """Processor, chat template and placeholders, as `Qwen2VLProcessor` does them."""
        vision = self.processor(pictures, return_tensors="pt")
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        for grid in vision["image_grid_thw"]:
            text = text.replace("<|image_pad|>", "<|hole|>" * (int(grid.prod()) // 4), 1)
        text = text.replace("<|hole|>", "<|image_pad|>")
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        image_token = self.model.config.image_token_id
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == image_token).int(),
            "pixel_values": vision["pixel_values"],
            "image_grid_thw": vision["image_grid_thw"],
        }
        return Request(inputs, image_token)

    @torch.no_grad()
    def generate(self, request: Request, most: int) -> tuple[list[int], NDArray[np.float32]]:
        """Greedy tokens of `generate`, stop token dropped, and the prompt's logits [V]."""
        result = self.model.generate(
            **request.inputs,
            max_new_tokens=most,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = result.sequences[0, request.inputs["input_ids"].shape[1] :].tolist()
        return self.without_stop(tokens), result.logits[0][0].numpy()

    @torch.no_grad()
    def generate_kept(self, request: Request, kept: NDArray[np.int64], most: int) -> list[int]:
        """Greedy tokens when only the `kept` visual tokens are left, at their own positions."""
        model = self.model.model
        ids, grid = request.inputs["input_ids"], request.inputs["image_grid_thw"]
        if request.visual_embeds is None:
            pixels = request.inputs["pixel_values"]
            request.visual_embeds = model.visual(pixels, grid).pooler_output
        embeds = model.language_model.embed_tokens(ids)
        embeds[0, request.visual] = request.visual_embeds
        positions, _ = model.get_rope_index(
            ids, image_grid_thw=grid, mm_token_type_ids=request.inputs["mm_token_type_ids"]
        )
        index = np.setdiff1d(np.arange(ids.shape[1]), np.delete(request.visual, kept))
        following = int(positions.max()) + 1
        states, places = embeds[:, index], positions[:, :, index]
        cache, tokens = DynamicCache(), []
        while len(tokens) < most:
            hidden = model.language_model(
                inputs_embeds=states, position_ids=places, past_key_values=cache, use_cache=True
            ).last_hidden_state
            tokens.append(int(self.model.lm_head(hidden[0, -1]).argmax()))
            if tokens[-1] in self.stops:
                break
            states = model.language_model.embed_tokens(torch.tensor([tokens[-1:]]))
            places = torch.full((3, 1, 1), following + len(tokens) - 1)
        return self.without_stop(tokens)

    def without_stop(self, tokens: list[int]) -> list[int]:
        """Tokens before the first stop token."""
        stop = next((i for i, token in enumerate(tokens) if token in self.stops), len(tokens))
        return tokens[:stop]
