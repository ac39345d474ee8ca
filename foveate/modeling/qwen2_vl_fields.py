"""What becomes of each field of a Qwen2-VL checkpoint's configuration and image settings."""

from typing import Any

from foveate.errors import CheckpointError
from foveate.families.pixels import image_section
from foveate.modeling.checkpoint import CONFIG_FILE, Checkpoint
from foveate.modeling.common_fields import CONFIG
from foveate.modeling.decoder_fields import DECODER, check_heads
from foveate.modeling.fields import (
    Count,
    Factor,
    Honoured,
    Natural,
    NoEffect,
    Refused,
    Table,
    brief,
    check_fields,
)
from foveate.modeling.picture_fields import PICTURES
from foveate.modeling.rope import check_sections, read_rope

_UNREAD = NoEffect("transformers does not read it")

TEXT: Table = {
    **DECODER,
    "head_dim": Refused(
        "heads of another size than hidden_size over num_attention_heads, which Qwen2-VL has not",
        lambda value, held: (
            value * held.get("num_attention_heads", 0) == held.get("hidden_size", -1)
        ),
    ),
    "image_token_id": _UNREAD,
    "video_token_id": _UNREAD,
    "vision_start_token_id": _UNREAD,
    "vision_end_token_id": _UNREAD,
    "vision_token_id": _UNREAD,
}
"""Those of text_config, which old checkpoints have in config.json itself."""

VISION: Table = {
    **CONFIG,
    "depth": Honoured(Count),
    "embed_dim": Honoured(Count),
    "hidden_size": Honoured(Count),
    "hidden_act": Honoured(str),
    "mlp_ratio": Honoured(Count),
    "num_heads": Honoured(Count),
    "in_channels": Honoured(Count),
    "patch_size": Honoured(Count),
    "spatial_merge_size": Honoured(Count),
    "temporal_patch_size": Honoured(Count),
    "rope_parameters": Honoured(dict[str, Any]),
    "num_hidden_layers": NoEffect("it is another name of depth"),
    "num_attention_heads": NoEffect("it is another name of num_heads"),
    "in_chans": Refused("another number of channels than Qwen2-VL takes", (3,)),
    "spatial_patch_size": _UNREAD,
}
"""Those of vision_config."""

ROOT: Table = {
    **CONFIG,
    "text_config": Honoured(dict[str, Any]),
    "vision_config": Honoured(dict[str, Any]),
    "image_token_id": Honoured(Natural),
    "video_token_id": Honoured(Natural),
    "vision_start_token_id": Honoured(Natural),
    "vision_end_token_id": Honoured(Natural),
    "vision_token_id": _UNREAD,
    "tie_word_embeddings": Honoured(bool),
}
"""Those of config.json."""

IMAGES: Table = {
    **PICTURES,
    "min_pixels": Honoured(Count),
    "max_pixels": Honoured(Count),
    "patch_size": Honoured(Count),
    "temporal_patch_size": Honoured(Count),
    "merge_size": Honoured(Count),
    "do_pad": Refused("padded pictures, which Qwen2-VL does not take", (False,), "set it to false"),
    "pad_size": NoEffect("do_pad decides, and must be false"),
}
"""Those of pictures in preprocessor_config.json or processor_config.json."""

VISION_ROPE: Table = {
    "rope_type": Refused(
        "rotary positions of another kind than Qwen2-VL's vision has", ("axial", "default")
    ),
    "rope_theta": Honoured(Factor),
}
AXES, USUAL_SECTIONS = 3, (16, 24, 24)
"""Axes of a position, and transformers' split of half a head among them."""


def check_settings(checkpoint: Checkpoint) -> None:
    """Refuse what a Qwen2-VL checkpoint asks for and would not get.

    Raises:
        CheckpointError: There is such a field; the message names file and field.
    """
    config, file = checkpoint.config, checkpoint.shown(CONFIG_FILE)
    text = config.get("text_config")
    place = file
    if text is None:
        check_fields(config, {**TEXT, **ROOT}, file)
        text = config
    else:
        beside = {name: rule for name, rule in TEXT.items() if name not in ROOT}
        check_fields(config, {**beside, **ROOT}, file)
        check_fields(text, TEXT, file, "text_config")
        place = f"{file}: text_config"
        for name, rule in beside.items():
            if isinstance(rule, Honoured) and config.get(name) not in (None, text.get(name)):
                raise CheckpointError(
                    f"{file}: {name} is {brief(config[name])} and in text_config {brief(text.get(name))}, "
                    "which goes before it; remove one of them"
                )
    vision = config.get("vision_config") or {}
    check_fields(vision, VISION, file, "vision_config")
    check_fields(
        vision.get("rope_parameters") or {}, VISION_ROPE, file, "vision_config.rope_parameters"
    )
    where, rope = read_rope(text, place)
    check_heads(text, place)
    hidden, heads = text.get("hidden_size"), text.get("num_attention_heads")
    if hidden and heads:
        check_sections(rope, where, USUAL_SECTIONS, AXES, hidden // heads // 2)
    image = image_section(checkpoint.root)
    check_fields(image[1], IMAGES, str(image[0]))
