"""Qwen2-VL in torch, as transformers has it."""

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.types import Device
from transformers import DynamicCache
from transformers import Qwen2VLForConditionalGeneration as Model
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

from foveate.bundle.manifest import AxisRange, ModelFacts, Rope
from foveate.families.base import VisualInput
from foveate.families.qwen2_vl_pixels import GridInput
from foveate.modeling.attention import AttentionBlocks, pictures_attention
from foveate.modeling.base import Processed, Processor, VisionModule
from foveate.modeling.blocks import Blocks, Part
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.composite import Composite, settled
from foveate.modeling.load_model import load_model
from foveate.modeling.qwen2_vl_contrib import vision_graph
from foveate.modeling.qwen2_vl_fields import check_settings
from foveate.modeling.random_weights import draw
from foveate.modeling.turn_tokens import check_token, turn_tokens
from foveate.runtime.memory_estimate import VISION_SCORES


class TorchQwen2VL(Composite):
    """Qwen2-VL's torch half; see `TorchFamily`."""

    taps = 0

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse settings that cannot be honoured; see `TorchFamily.check`."""
        check_settings(checkpoint)

    def load(self, checkpoint: Checkpoint, dtype: torch.dtype, attention: str) -> Model:
        """Load the weights as `dtype`.

        Raises:
            CheckpointError: Weights missing or unreadable, or a setting that cannot be honoured.
        """
        self.check(checkpoint)
        return settled(load_model(Model, checkpoint, dtype, attention))

    def blank(
        self, checkpoint: Checkpoint, dtype: torch.dtype, attention: str, device: Device = "cpu"
    ) -> Model:
        """Build the model with random weights.

        Raises:
            CheckpointError: config.json does not describe one, or has a setting that cannot be honoured.
        """
        self.check(checkpoint)
        return settled(draw(checkpoint, dtype, attention, device))

    def facts(self, model: Model) -> ModelFacts:
        """The sizes that the manifest records."""
        text = model.config.text_config
        return ModelFacts(
            hidden_size=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
            tied_embeddings=model.lm_head.weight is model.model.language_model.embed_tokens.weight,
            rope=Rope(
                theta=float(text.rope_parameters["rope_theta"]),
                sections=tuple(model.model.language_model.rotary_emb.mrope_section),
            ),
        )

    def tokens(self, checkpoint: Checkpoint, model: Model, tokenizer: Tokenizer) -> dict[str, int]:
        """Ids of the control tokens that the prompt layout needs.

        Raises:
            CheckpointError: The tokenizer lacks one.
        """
        turns = turn_tokens(checkpoint, tokenizer)
        video = model.config.video_token_id
        for field in ("image_token_id", "vision_start_token_id", "vision_end_token_id"):
            check_token(checkpoint, field, getattr(model.config, field), tokenizer)
        return {
            "image": model.config.image_token_id,
            **({} if tokenizer.id_to_token(video) is None else {"video": video}),
            "vision_start": model.config.vision_start_token_id,
            "vision_end": model.config.vision_end_token_id,
            **turns,
        }

    def decode(
        self, model: Model, embeds: Tensor, positions: Tensor, cache: DynamicCache
    ) -> Tensor:
        """Run the language model: [B, S, H] after the last norm; see `TorchFamily.decode`."""
        hidden: Tensor = model.model.language_model(
            inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return hidden

    def features(self, model: Model, visual: VisualInput) -> Tensor:
        """The vision graph's rows, which are the visual tokens."""
        return self.encode(model, visual)

    def encode(self, model: Model, visual: VisualInput) -> Tensor:
        """Visual tokens E_v [N_v, H]."""
        return self.encode_processed(model, self.processed(model, visual))

    def encode_processed(self, model: Model, processed: Processed) -> Tensor:
        """Visual tokens E_v [N_v, H] of patches float32 [P, D] and grids int64 [pictures, 3]."""
        pixels = torch.from_numpy(processed["pixel_values"]).to(model.device, model.dtype)
        grids = torch.as_tensor(processed["image_grid_thw"], device=model.device)
        tokens: Tensor = model.model.visual(pixels, grids).pooler_output
        return tokens

    def processor(self, checkpoint: Checkpoint) -> Processor:
        """Transformers' own image processor."""
        processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint.root)
        return lambda pictures: processor(images=pictures, return_tensors="np")

    def processed(self, model: Model, visual: VisualInput) -> Processed:
        """Prepared pictures or videos as patches and grids (steps, rows, columns) of patches."""
        assert isinstance(visual, GridInput)
        merge = model.config.vision_config.spatial_merge_size
        return {
            "pixel_values": np.concatenate(
                [np.concatenate(call.inputs["pixel_values"]) for call in visual.calls]
            ),
            "image_grid_thw": np.array(visual.grids, np.int64).reshape(-1, 3) * (1, merge, merge),
        }

    def vision_module(self, model: Model) -> VisionModule:
        """The vision tower over patches of any number of pictures and videos."""
        config = model.config.vision_config
        width = config.in_channels * config.temporal_patch_size * config.patch_size**2
        merged = config.spatial_merge_size**2
        patches = 5 * merged
        axes = {0: "pictures", 1: "patches"}
        return VisionModule(
            module=Vision(model),
            inputs={
                "pixel_values": (torch.randn(3, patches, width), axes),
                "position_ids": (torch.zeros(3, patches, 2, dtype=torch.int64), axes),
            },
            # Engines with ranges take one picture a run: their memory is for the largest sizes together.
            ranges={"pictures": AxisRange(plus=1), "patches": AxisRange(per_token=merged)},
        )

    contrib_vision = staticmethod(vision_graph)


class PatchProjection(nn.Module):
    """The patch embedding's strided convolution as the matrix product that it equals."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = convolution.weight

    def forward(self, patches: Tensor) -> Tensor:
        """Embeddings [P, C] of flattened patches [P, channels · frames · side²]."""
        return nn.functional.linear(patches.to(self.weight.dtype), self.weight.flatten(1))


class Layer(nn.Module):
    """A layer of the vision tower that holds no more than a block of what is wider than its output."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm1, self.attention = layer.norm1, layer.attn
        self.norm2, self.mlp = layer.norm2, layer.mlp

    def forward(
        self,
        hidden: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        pictures: Any,
        patch_blocks: Blocks,
        attention_blocks: AttentionBlocks,
        **_: Any,
    ) -> Tensor:
        """Patches [P, C] of `pictures` pictures after the layer."""
        heads = self.attention.num_heads
        part = Part(patch_blocks)
        rows, cos, sin = part.enter(hidden, *position_embeddings)
        states = self.attention.qkv(self.norm1(rows)).unflatten(1, (3, heads, -1))
        query, key = apply_rotary_pos_emb_vision(states[:, 0], states[:, 1], cos, sin)
        query, key, value = (
            part.leave(one.flatten(1))
            for one in (query * self.attention.scaling, key, states[:, 2])
        )
        attended = pictures_attention(query, key, value, heads, pictures, attention_blocks)
        part = Part(patch_blocks)
        rows, attended = part.enter(hidden, attended)
        rows = rows + self.attention.proj(attended)
        return part.leave(rows + self.mlp(self.norm2(rows)))


class Vision(nn.Module):
    """Patches of pictures, or steps of a video, of one size to visual tokens E_v."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.tower = model.model.visual
        self.tower.patch_embed = PatchProjection(self.tower.patch_embed.proj)
        self.tower.blocks = nn.ModuleList(Layer(layer) for layer in self.tower.blocks)

    def forward(self, pixel_values: Tensor, position_ids: Tensor) -> Tensor:
        """Visual tokens [N_v, H].

        Args:
            pixel_values: float32 [N, P, C · frames · side²], normalised patches of N pictures.
            position_ids: int64 [N, P, 2], each patch's row and column in its picture.
        """
        count, patches = pixel_values.shape[:2]
        config = self.tower.config
        heads, width = config.num_heads, config.embed_dim
        most = max(1, VISION_SCORES // int(width * config.mlp_ratio))
        borders = torch.arange(count + 1, dtype=torch.int32) * patches
        output = self.tower(
            pixel_values.flatten(0, 1),
            None,
            position_ids=position_ids.flatten(0, 1),
            cu_seqlens=borders,
            max_seqlen=1,
            pictures=count,
            attention_blocks=AttentionBlocks.of(count, heads, patches, width // heads),
            patch_blocks=Blocks.of("patches", (count * patches, width), 0, most),
        )
        visual: Tensor = output.pooler_output
        return visual
