"""LLaVA-OneVision in torch, as transformers has it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.types import Device
from transformers import DynamicCache
from transformers import LlavaOnevisionForConditionalGeneration as Model
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from foveate.bundle.manifest import ROWS, AxisRange, ModelFacts, Rope
from foveate.errors import ExportError
from foveate.families.base import VisualInput
from foveate.families.llava_onevision import TiledInput
from foveate.families.llava_onevision_settings import read_preprocessing
from foveate.families.taps import TAPS
from foveate.modeling.base import Processed, Processor, VisionModule
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.composite import Composite, settled
from foveate.modeling.graph_builder import GraphBuilder
from foveate.modeling.llava_onevision_fields import check_settings
from foveate.modeling.load_model import load_model
from foveate.modeling.random_weights import draw
from foveate.modeling.siglip import SiglipTower, grid_side, tiles_input, tower_states
from foveate.modeling.turn_tokens import check_token, turn_tokens


class TorchLlavaOnevision(Composite):
    """LLaVA-OneVision's torch half; see `TorchFamily`."""

    taps = TAPS

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
        text, language = model.config.text_config, model.model.language_model
        return ModelFacts(
            hidden_size=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=language.layers[0].self_attn.head_dim,
            vocabulary=text.vocab_size,
            tied_embeddings=model.lm_head.weight is language.embed_tokens.weight,
            rope=Rope(theta=float(text.rope_parameters["rope_theta"]), sections=()),
        )

    def tokens(self, checkpoint: Checkpoint, model: Model, tokenizer: Tokenizer) -> dict[str, int]:
        """Ids of the control tokens that the prompt layout needs.

        Raises:
            CheckpointError: The tokenizer lacks one.
        """
        turns = turn_tokens(checkpoint, tokenizer)
        image, video = model.config.image_token_id, model.config.video_token_id
        check_token(checkpoint, "image_token_index", image, tokenizer)
        videos = {} if tokenizer.id_to_token(video) is None else {"video": video}
        return {"image": image, **videos, **turns}

    def decode(
        self, model: Model, embeds: Tensor, positions: Tensor, cache: DynamicCache
    ) -> Tensor:
        """Run the language model: [B, S, H] after the last norm; see `TorchFamily.decode`."""
        hidden: Tensor = model.model.language_model(
            inputs_embeds=embeds, position_ids=positions[0], past_key_values=cache, use_cache=True
        ).last_hidden_state
        return hidden

    def features(self, model: Model, visual: VisualInput) -> Tensor:
        """A row for each patch of each tile, and one for newlines: [R, H]."""
        layer, whole = model.config.vision_feature_layer, model.model
        rows: list[Tensor] = []
        for call in visual.calls:
            pixels = torch.from_numpy(call.inputs["pixel_values"]).to(model.device, model.dtype)
            states = whole.vision_tower(pixels, output_hidden_states=True).hidden_states[layer]
            rows.append(whole.multi_modal_projector(states).flatten(0, 1))
        return torch.cat([*rows, whole.image_newline[None]])

    def encode(self, model: Model, visual: VisualInput) -> Tensor:
        """Visual tokens E_v [N_v, H]."""
        assert isinstance(visual, TiledInput)
        canvas = next((one.canvas for one in visual.shown if one.canvas is not None), None)
        own = model.config.image_grid_pinpoints
        if canvas is not None:
            # transformers chooses among them once more, where a request's limits left fewer.
            model.config.image_grid_pinpoints = [list(canvas.size)]
        try:
            return self.encode_processed(model, self.processed(model, visual))
        finally:
            model.config.image_grid_pinpoints = own

    def encode_processed(self, model: Model, processed: Processed) -> Tensor:
        """Visual tokens E_v [N_v, H] of what `processed` gave, in the order of pictures and videos."""
        sent = {name: torch.from_numpy(np.asarray(one)) for name, one in processed.items()}
        pictures: list[Tensor] = []
        if len(sent["image_sizes"]):
            pixels = sent["pixel_values"].to(model.device, model.dtype)
            found = model.model.get_image_features(
                pixels, sent["image_sizes"], batch_num_images=sent["batch_num_images"]
            )
            pictures = list(found.pooler_output)
        frames = sent.get("frames", torch.empty(0, dtype=torch.int64)).tolist()
        if not any(frames):
            return torch.cat(pictures)
        films = sent["pixel_values_videos"].to(model.device, model.dtype)
        counts = [count for count in frames if count]
        cut = torch.split(films, counts)
        videos = iter([model.model.get_video_features(one[None]).pooler_output[0] for one in cut])
        stills = iter(pictures)
        return torch.cat([next(videos if count else stills) for count in frames])

    def processor(self, checkpoint: Checkpoint) -> Processor:
        """Transformers' own image processor, of the pictures of one conversation."""
        processor = LlavaOnevisionImageProcessorPil.from_pretrained(checkpoint.root)
        return lambda pictures: processor(images=[pictures], return_tensors="np")

    def processed(self, model: Model, visual: VisualInput) -> Processed:
        """Prepared pictures as transformers' processors would give them.

        Where there are videos, `pixel_values_videos` float32 [F, 3, side, side] holds all their frames, and
        `frames` says of each picture and video how many frames it has, 0 for a picture.
        """
        assert isinstance(visual, TiledInput)
        side = model.config.vision_config.image_size
        none = np.empty((0, 3, side, side), np.float32)
        tiles = np.concatenate([none, *(call.inputs["pixel_values"] for call in visual.calls)])
        ends = np.cumsum([one.tiles for one in visual.shown])
        cut = np.split(tiles, ends[:-1])
        pictures = [pair for pair in zip(visual.shown, cut, strict=False) if not pair[0].moving]
        videos = [tiles for one, tiles in zip(visual.shown, cut, strict=False) if one.moving]
        found: dict[str, NDArray[Any]] = {
            "pixel_values": _batched([tiles for _, tiles in pictures], none),
            "image_sizes": np.array([one.size for one, _ in pictures], np.int64).reshape(-1, 2),
            "batch_num_images": np.array([len(pictures)], np.int64),
        }
        if videos:
            counts = [one.frames if one.moving else 0 for one in visual.shown]
            found |= {"pixel_values_videos": np.concatenate(videos), "frames": np.array(counts)}
        return found

    def vision_module(self, model: Model) -> VisionModule:
        """The vision tower and the projector over any number of tiles, and the newline's row."""
        config = model.config.vision_config
        patches = grid_side(model.model.vision_tower)
        pooled = -(-patches // 2)
        most = max(down * across for down, across in model.config.image_grid_pinpoints)
        tiles = 1 + most // config.image_size**2
        example = torch.randn(3, config.num_channels, config.image_size, config.image_size)
        return VisionModule(
            module=Vision(model),
            inputs={"pixel_values": (example, {0: "tiles"})},
            # Engines with ranges take one tile a run.
            ranges={
                "tiles": AxisRange(plus=1),
                ROWS: AxisRange(per_token=(patches / pooled) ** 2, plus=tiles * patches**2 + 1),
            },
        )

    def contrib_vision(self, model: Model, preprocessing: Mapping[str, Any]) -> ir.Model:
        """The same in contrib operators: 8-bit levels of tiles to rows.

        Raises:
            BundleError: Settings that are wrong.
            ExportError: An activation that the contrib operators lack.
        """
        settings, _ = read_preprocessing(preprocessing)
        tower, projector = model.model.vision_tower, model.model.multi_modal_projector
        activation = model.config.projector_hidden_act
        if activation != "gelu":
            raise ExportError(
                f"the projector's activation {activation} has no contrib operator; export with "
                "--operators standard"
            )
        graph = GraphBuilder(model.dtype)
        states = tower_states(
            graph, tower, model.config.vision_feature_layer, tiles_input(graph, tower),
            settings.rescale_factor, settings.image_mean, settings.image_std,
        )  # fmt: skip
        flat = graph.op("Reshape", states, [-1, tower.config.hidden_size])
        wide = graph.contrib("Gelu", graph.layer(flat, "projector.1", projector.linear_1))
        rows = graph.layer(wide, "projector.2", projector.linear_2)
        newline = graph.weight("newline", model.model.image_newline[None])
        width = model.config.text_config.hidden_size
        whole = graph.op("Concat", rows, newline, axis=0)
        return graph.model("vision", {"visual_embeds": (whole, graph.dtype, [ROWS, width])})


def _batched(pictures: Sequence[NDArray[np.float32]], none: NDArray[np.float32]) -> NDArray[Any]:
    """Tiles of pictures [pictures, most tiles, 3, side, side], padded with zeros."""
    most = max(map(len, pictures), default=0)
    whole = np.zeros((len(pictures), most, *none.shape[1:]), np.float32)
    for place, tiles in zip(whole, pictures, strict=True):
        place[: len(tiles)] = tiles
    return whole


class Vision(nn.Module):
    """Tiles to a row for each of their patches, and a last row for newlines."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        whole = model.model
        self.tower = SiglipTower(whole.vision_tower, model.config.vision_feature_layer)
        self.projector, self.newline = whole.multi_modal_projector, whole.image_newline

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Rows [N · P + 1, H] of normalised tiles float32 [N, 3, side, side] of P patches."""
        rows = self.projector(self.tower(pixel_values).flatten(0, 1))
        return torch.cat([rows, self.newline[None]])
