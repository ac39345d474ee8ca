"""VILA1.5 in torch: SigLIP and Llama as transformers has them, and the projector between."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.types import Device
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from foveate.bundle.manifest import AxisRange, ModelFacts, Rope
from foveate.errors import CheckpointError
from foveate.families.base import VisualInput
from foveate.families.vila import END_OF_TURN, image_token
from foveate.families.vila_settings import (
    LANGUAGE,
    PROJECTOR,
    TOWER,
    part_config,
    read_preprocessing,
)
from foveate.modeling.base import Processed, Processor, VisionModule
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.graph_builder import GraphBuilder
from foveate.modeling.language_model import Language
from foveate.modeling.load_model import load_model
from foveate.modeling.random_weights import draw
from foveate.modeling.rope import settle
from foveate.modeling.siglip import SiglipTower, grid_side, tiles_input, tower_states
from foveate.modeling.turn_tokens import turn_tokens
from foveate.modeling.vila_fields import SELECT_LAYER, USUAL_LAYER, check_settings
from foveate.modeling.vila_projector import Projector, load_weights, projected

HEADLESS: dict[str, Any] = {"vision_use_head": False}
"""Tokens are taken before the vision tower's head, which is not loaded."""


class Vila(nn.Module):
    """Vision tower, projector and language model of a checkpoint.

    Attributes:
        tower: Pictures to hidden states.
        projector: One of them to visual tokens.
        llm: The language model.
        feature_layer: Which hidden state, as transformers numbers them.
    """

    def __init__(
        self,
        tower: SiglipVisionModel,
        projector: Projector,
        llm: LlamaForCausalLM,
        feature_layer: int,
    ) -> None:
        super().__init__()
        self.tower, self.projector, self.llm = tower, projector, llm
        self.feature_layer = feature_layer

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.projector.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.projector.device

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens E_v [N_v, H] of normalised pictures [N, 3, side, side], by transformers' own tower."""
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        tokens: Tensor = self.projector(states[self.feature_layer]).flatten(0, 1)
        return tokens

    def init_weights(self) -> None:
        """Draw the weights at random."""
        self.tower.init_weights()
        self.llm.init_weights()
        self.projector.init_weights()


class TorchVila:
    """VILA1.5's torch half; see `TorchFamily`."""

    taps = 0

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse settings that cannot be honoured; see `TorchFamily.check`."""
        check_settings(checkpoint)

    def load(self, checkpoint: Checkpoint, dtype: torch.dtype, attention: str) -> Vila:
        """Load the weights as `dtype`.

        Raises:
            CheckpointError: Weights missing or unreadable, or a setting that cannot be honoured.
        """
        self.check(checkpoint)
        llm = load_model(LlamaForCausalLM, checkpoint, dtype, attention, LANGUAGE)
        tower = load_model(SiglipVisionModel, checkpoint, dtype, attention, TOWER, **HEADLESS)
        projector = Projector(
            projector_type(checkpoint), tower_width(tower), llm.config.hidden_size
        )
        load_weights(projector, checkpoint, dtype)
        return settled(Vila(tower, projector, llm, feature_layer(checkpoint))).eval()

    def blank(
        self, checkpoint: Checkpoint, dtype: torch.dtype, attention: str, device: Device = "cpu"
    ) -> Vila:
        """Build the model with random weights.

        Raises:
            CheckpointError: The configuration describes none, or has a setting that cannot be honoured.
        """
        self.check(checkpoint)
        return settled(draw(checkpoint, dtype, attention, device, build))

    def set_attention(self, model: Vila, attention: str) -> None:
        """Let the language model alone compute attention by this name."""
        model.llm.set_attn_implementation(attention)

    def facts(self, model: Vila) -> ModelFacts:
        """The sizes that the manifest records."""
        text = model.llm.config
        return ModelFacts(
            hidden_size=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            vocabulary=text.vocab_size,
            tied_embeddings=model.llm.lm_head.weight is model.llm.model.embed_tokens.weight,
            rope=Rope(theta=float(text.rope_parameters["rope_theta"]), sections=()),
        )

    def context(self, model: Vila) -> int:
        """The longest sequence that the language model was made for, in tokens."""
        return int(model.llm.config.max_position_embeddings)

    def tokens(self, checkpoint: Checkpoint, model: Vila, tokenizer: Tokenizer) -> dict[str, int]:
        """Ids of the tokens that the prompt layout needs.

        Raises:
            CheckpointError: The tokenizer has none to stand for a picture.
        """
        image = image_token(tokenizer)
        stand = None if image is None else tokenizer.token_to_id(image)
        if stand is None:
            raise CheckpointError(
                f"{checkpoint.shown(checkpoint.beside_text('tokenizer.json'))}: no added token <image>, and "
                "no reserved one, to stand for a picture; add <image> to it as a special token"
            )
        stops = checkpoint.stops()
        ends = [*map(tokenizer.id_to_token, stops)]
        end = END_OF_TURN if END_OF_TURN in ends else str(ends[0])
        return {"image": stand, **turn_tokens(checkpoint, tokenizer, end)}

    def language(self, model: Vila) -> Language:
        """The parts of the language model."""
        text = model.llm.model
        return Language(
            text.embed_tokens, text.rotary_emb, text.layers, text.norm, model.llm.lm_head
        )

    def decode(self, model: Vila, embeds: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Run the language model: [B, S, H] after the last norm; see `TorchFamily.decode`."""
        hidden: Tensor = model.llm.model(
            inputs_embeds=embeds, position_ids=positions[0], past_key_values=cache, use_cache=True
        ).last_hidden_state
        return hidden

    def features(self, model: Vila, visual: VisualInput) -> Tensor:
        """The vision graph's rows, which are the visual tokens."""
        return self.encode(model, visual)

    def encode(self, model: Vila, visual: VisualInput) -> Tensor:
        """Visual tokens E_v [N_v, H]."""
        return self.encode_processed(model, self.processed(model, visual))

    def encode_processed(self, model: Vila, processed: Processed) -> Tensor:
        """Visual tokens E_v [N_v, H] of normalised pictures float32 [N, 3, side, side]."""
        pixels = torch.from_numpy(processed["pixel_values"]).to(model.device, model.dtype)
        if not len(pixels):
            return pixels.new_empty(0, model.llm.config.hidden_size)
        tokens: Tensor = model(pixels)
        return tokens

    def processor(self, checkpoint: Checkpoint) -> Processor:
        """Transformers' own image processor."""
        processor = SiglipImageProcessorPil.from_pretrained(checkpoint.root / TOWER)
        return lambda pictures: processor(images=pictures, return_tensors="np")

    def processed(self, model: Vila, visual: VisualInput) -> Processed:
        """Prepared pictures and frames as transformers' image processor would give them."""
        side = int(model.tower.config.image_size)
        calls = [call.inputs["pixel_values"] for call in visual.calls]
        return {"pixel_values": np.concatenate([np.empty((0, 3, side, side), np.float32), *calls])}

    def vision_module(self, model: Vila) -> VisionModule:
        """The vision tower and the projector over any number of pictures."""
        side = int(model.tower.config.image_size)
        return VisionModule(
            module=Vision(model),
            inputs={"pixel_values": (torch.randn(3, 3, side, side), {0: "tiles"})},
            # Engines with ranges take one picture a run.
            ranges={"tiles": AxisRange(plus=1)},
        )

    def contrib_vision(self, model: Vila, preprocessing: Mapping[str, Any]) -> ir.Model:
        """The same in contrib operators: `levels` uint8 [tiles, side, side, 3] to `visual_embeds` [N_v, H].

        Raises:
            BundleError: Settings that are wrong.
            ExportError: An activation that the contrib operators lack.
        """
        settings = read_preprocessing(preprocessing).images
        graph = GraphBuilder(model.dtype)
        states = tower_states(
            graph,
            model.tower,
            model.feature_layer,
            tiles_input(graph, model.tower),
            settings.rescale_factor,
            settings.image_mean,
            settings.image_std,
        )
        visual = projected(graph, states, model.projector, grid_side(model.tower))
        width = model.llm.config.hidden_size
        return graph.model("vision", {"visual_embeds": (visual, graph.dtype, ["visual", width])})


class Vision(nn.Module):
    """Pictures to visual tokens E_v, in a form that can be traced."""

    def __init__(self, model: Vila) -> None:
        super().__init__()
        self.tower = SiglipTower(model.tower, model.feature_layer)
        self.projector = model.projector

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens [N_v, H] of normalised pictures float32 [N, 3, side, side]."""
        tokens: Tensor = self.projector(self.tower(pixel_values.to(self.projector.dtype)))
        return tokens.flatten(0, 1)


def build(checkpoint: Checkpoint, dtype: torch.dtype, attention: str) -> Vila:
    """The model that a checkpoint's configurations describe, with any weights."""
    text, tower = (
        kind.from_dict(part_config(checkpoint.root, name)[2])
        for kind, name in ((LlamaConfig, LANGUAGE), (SiglipVisionConfig, TOWER))
    )
    tower.vision_use_head = False
    made = [
        kind._from_config(config, dtype=dtype, attn_implementation=attention)
        for kind, config in ((SiglipVisionModel, tower), (LlamaForCausalLM, text))
    ]
    projector = Projector(projector_type(checkpoint), tower.hidden_size, text.hidden_size)
    return Vila(made[0], projector.to(dtype), made[1], feature_layer(checkpoint))


def projector_type(checkpoint: Checkpoint) -> str:
    """Which kind of projector a checkpoint has."""
    return str(part_config(checkpoint.root, PROJECTOR)[2]["mm_projector_type"])


def feature_layer(checkpoint: Checkpoint) -> int:
    """Which hidden state pictures are taken from."""
    layer = checkpoint.config.get(SELECT_LAYER)
    return USUAL_LAYER if layer is None else int(layer)


def tower_width(tower: SiglipVisionModel) -> int:
    """Numbers of a patch."""
    return int(tower.config.hidden_size)


def settled(model: Vila) -> Vila:
    """The model, its rotary rates the same for every prompt."""
    settle(model.llm.model.rotary_emb)
    return model
