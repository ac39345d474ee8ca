"""What becomes of each field of a LLaVA-OneVision checkpoint's configuration and image settings."""

from typing import Any

from foveate.errors import CheckpointError
from foveate.families.pixels import image_section
from foveate.modeling.checkpoint import CONFIG_FILE, Checkpoint
from foveate.modeling.common_fields import CONFIG
from foveate.modeling.decoder_fields import DECODER, check_heads
from foveate.modeling.fields import (
    Count,
    Honoured,
    Natural,
    NoEffect,
    Refused,
    Table,
    brief,
    check_fields,
)
from foveate.modeling.picture_fields import PICTURES
from foveate.modeling.rope import read_rope
from foveate.modeling.siglip_fields import SIGLIP

PROCESSOR_FILE = "processor_config.json"
TEXT: Table = {**DECODER, "head_dim": Honoured(Count)}
"""Those of text_config."""

ROOT: Table = {
    **CONFIG,
    "text_config": Honoured(dict[str, Any]),
    "vision_config": Honoured(dict[str, Any]),
    "image_token_index": Honoured(Natural),
    "video_token_index": Honoured(Natural),
    "image_token_id": NoEffect("it is another name of image_token_index"),
    "video_token_id": NoEffect("it is another name of video_token_index"),
    "projector_hidden_act": Honoured(str),
    "multimodal_projector_bias": Honoured(bool),
    "vision_feature_layer": Honoured(int),
    "vision_feature_select_strategy": Refused(
        "that the first token of each tile is left out, which SigLIP's towers do not have",
        ("full",),
        "set it to full if the checkpoint's tower has no class token",
    ),
    "vision_aspect_ratio": Honoured(str),
    "image_grid_pinpoints": Honoured(list[tuple[Count, Count]]),
    "tie_word_embeddings": Honoured(bool),
    "use_image_newline_parameter": Refused("pictures without newlines", (True,)),
    "ignore_index": NoEffect("it is about training"),
}
"""Those of config.json."""

IMAGES: Table = {
    **PICTURES,
    "image_grid_pinpoints": Honoured(list[tuple[Count, Count]]),
    "do_pad": NoEffect("it is about batches, and pictures here are not in one"),
    "pad_size": NoEffect("it is about batches, and pictures here are not in one"),
}
"""Those of pictures in preprocessor_config.json or processor_config.json."""

_SAME = ("vision_aspect_ratio", "vision_feature_select_strategy")
_TYPES = {"text_config": "qwen2", "vision_config": "siglip_vision_model"}


def check_settings(checkpoint: Checkpoint) -> None:
    """Refuse what a LLaVA-OneVision checkpoint asks for and would not get.

    Raises:
        CheckpointError: There is such a field; the message names file and field.
    """
    config, file = checkpoint.config, checkpoint.shown(CONFIG_FILE)
    check_fields(config, ROOT, file)
    for part, table in (("text_config", TEXT), ("vision_config", SIGLIP)):
        section = config.get(part) or {}
        check_fields(section, table, file, part)
        kind = section.get("model_type", _TYPES[part])
        if kind != _TYPES[part]:
            raise CheckpointError(
                f"{file}: {part}.model_type is {brief(kind)}, and Foveate has {_TYPES[part]} there; "
                "give a checkpoint that has it"
            )
    text, vision = (config.get(part) or {} for part in _TYPES)
    read_rope(text, f"{file}: text_config")
    if text.get("head_dim") is None:
        check_heads(text, f"{file}: text_config")
    check_heads(vision, f"{file}: vision_config")
    layer, layers = config.get("vision_feature_layer", -1), vision.get("num_hidden_layers", 26)
    if not -layers - 1 <= layer <= layers:
        raise CheckpointError(
            f"{file}: vision_feature_layer is {layer}, and vision_config has {layers} layers; give one "
            f"from {-layers - 1} to {layers}"
        )
    found, images = image_section(checkpoint.root)
    check_fields(images, IMAGES, str(found))
    _check_processor(checkpoint)


def _check_processor(checkpoint: Checkpoint) -> None:
    """Refuse a processor that would lay pictures out otherwise than the model takes them."""
    held, config = checkpoint.section(PROCESSOR_FILE), checkpoint.config
    vision = config.get("vision_config") or {}
    patches = (vision.get("image_size", 384) // vision.get("patch_size", 14)) ** 2
    usual = {"vision_aspect_ratio": "anyres_max_9", "vision_feature_select_strategy": "full"}
    wanted = {name: config.get(name) or usual[name] for name in _SAME}
    for name, value in {**wanted, "num_image_tokens": patches}.items():
        if held.get(name) not in (None, value):
            raise CheckpointError(
                f"{checkpoint.shown(PROCESSOR_FILE)}: {name} is {brief(held[name])}, and by "
                f"{CONFIG_FILE} it is {brief(value)}; make them the same"
            )
