"""What becomes of each field of a VILA1.5 checkpoint's configurations and image settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError
from foveate.families.pixels import image_section
from foveate.families.vila_settings import (
    LANGUAGE,
    ORDERS,
    PROJECTOR,
    TOWER,
    part_config,
    settings_from_checkpoint,
)
from foveate.modeling.checkpoint import CONFIG_FILE, Checkpoint
from foveate.modeling.common_fields import CONFIG
from foveate.modeling.decoder_fields import DECODER
from foveate.modeling.fields import (
    Count,
    Honoured,
    NoEffect,
    Refused,
    Table,
    brief,
    check_fields,
    read_as,
)
from foveate.modeling.picture_fields import PICTURES
from foveate.modeling.rope import read_rope
from foveate.modeling.siglip_fields import SIGLIP

SELECT_LAYER = "mm_vision_select_layer"
USUAL_LAYER = -2
"""The hidden state that pictures are taken from where the checkpoint does not say."""

_TRAINING = NoEffect("it is about training")
_WRITER = NoEffect("it says who wrote the file, or what from")
_OLD = NoEffect("it is about classes of transformers that are no language model")
_SCALES = NoEffect("s2 decides, and must be false")
_NEWER = "a feature of later versions of VILA, which VILA1.5 does not have"
_MARKS = "marks around each picture, which VILA1.5 does not have"


def _within(length: Any, most: Any) -> bool:
    """Whether a length is at most another; neither may be a number."""
    return isinstance(length, int) and isinstance(most, int) and length <= most


EARLIER: Table = {
    **CONFIG,
    "add_cross_attention": Refused("attention to an encoder for text", (False,)),
    "is_decoder": NoEffect("the language model is a decoder, whatever it says"),
    "cross_attention_hidden_size": Refused("attention to an encoder for text"),
    "tie_encoder_decoder": _OLD,
    "tie_word_embeddings": NoEffect("that of the language model decides"),
    "prefix": _OLD,
    "sep_token_id": _OLD,
    "tf_legacy_loss": _OLD,
    "use_bfloat16": _OLD,
}
"""What versions of transformers of VILA1.5's time wrote into every configuration."""

TEXT: Table = {
    **EARLIER,
    **DECODER,
    "head_dim": Honoured(Count),
    "attention_bias": Honoured(bool),
    "mlp_bias": Honoured(bool),
    "model_max_length": Refused(
        "a context longer than max_position_embeddings, for which VILA stretches the positions",
        lambda value, held: _within(value, held.get("max_position_embeddings")),
        'write it into max_position_embeddings, and rope_scaling {"rope_type": "linear", "factor": …} '
        "beside it",
    ),
    "tokenizer_model_max_length": NoEffect("prompts are neither padded nor cut"),
    "tokenizer_padding_side": NoEffect("prompts are neither padded nor cut"),
    "resume_path": _WRITER,
}
"""Those of llm/config.json, and of llm_cfg in the checkpoint's own."""

VISION: Table = {
    **EARLIER,
    **SIGLIP,
    "projection_dim": NoEffect("tokens are taken before the head"),
    "resume_path": _WRITER,
}
"""Those of vision_tower/config.json, and of vision_tower_cfg in the checkpoint's own."""

PROJECTION: Table = {
    **EARLIER,
    "mm_projector_type": Refused(
        f"a projector that Foveate does not have; it has {', '.join(ORDERS)}",
        tuple(ORDERS),
        "take a checkpoint of VILA1.5",
    ),
    "resume_path": _WRITER,
}
"""Those of mm_projector/config.json, and of mm_projector_cfg in the checkpoint's own."""

ROOT: Table = {
    **EARLIER,
    "llm_cfg": Honoured(dict[str, Any]),
    "vision_tower_cfg": Honoured(dict[str, Any]),
    "mm_projector_cfg": Honoured(dict[str, Any]),
    "hidden_size": Honoured(Count),
    "mm_hidden_size": Honoured(Count),
    SELECT_LAYER: Honoured(int),
    "num_video_frames": Honoured(Count),
    "image_aspect_ratio": Refused(
        "pictures that are padded or cut, where VILA1.5 resizes them",
        ("resize",),
        'set it to "resize" if the checkpoint was trained so',
    ),
    "mm_vision_select_feature": Refused(
        "hidden states without the first patch, which VILA1.5 takes too",
        ("cls_patch",),
        'set it to "cls_patch" if the checkpoint was trained so',
    ),
    "mm_use_im_start_end": Refused(_MARKS, (False,)),
    "mm_use_im_patch_token": Refused(_MARKS, (False,)),
    "s2": Refused("pictures seen at several scales, which Foveate does not have", (False,)),
    "s2_scales": _SCALES,
    "s2_max_split_size": _SCALES,
    "s2_resize_output_to_scale_idx": _SCALES,
    "dynamic_s2": Refused(_NEWER, (False,)),
    "vision_resolution": Refused("positions of the vision tower made for another size", (-1,)),
    "interpolate_mode": NoEffect("vision_resolution decides, and must be -1"),
    "fps": Refused("frames of a video by a rate", (0, 0.0), "give a rate with each request"),
    "num_time_tokens": Refused(_NEWER, (0,)),
    "time_token_format": NoEffect("num_time_tokens decides, and must be 0"),
    "time_token_ids": Refused(_NEWER, ([],)),
    "soft_ce_std": _TRAINING,
    "image_encoder": Refused(_NEWER),
    "video_encoder": Refused(_NEWER),
    "min_tiles": Refused(_NEWER, (1,)),
    "max_tiles": Refused(_NEWER, (1,)),
    "video_max_tiles": Refused(_NEWER, (1,)),
    "speech_tower_cfg": Refused("sound, which Foveate does not take"),
    "sound_tower_cfg": Refused("sound, which Foveate does not take"),
    "speech_mm_projector_cfg": Refused("sound, which Foveate does not take"),
    "sound_mm_projector_cfg": Refused("sound, which Foveate does not take"),
    "drop_path_rate": _TRAINING,
    "mm_projector_lr": _TRAINING,
    "vision_tower_lr": _TRAINING,
    "tune_language_model": _TRAINING,
    "tune_mm_projector": _TRAINING,
    "tune_vision_tower": _TRAINING,
    "model_dtype": NoEffect("the export casts weights to the precision that it is asked for"),
    "resume_path": _WRITER,
    "version": _WRITER,
}
"""Those of the checkpoint's own config.json."""

IMAGES: Table = {
    **PICTURES,
    "image_processor_type": Refused(
        "another image processor than SigLIP's",
        lambda value, _: str(value).startswith("SiglipImageProcessor"),
        "take the vision tower's own preprocessor_config.json",
    ),
    "crop_size": Refused("another size than that of `size`"),
    "do_pad": Refused("padded pictures, where VILA1.5 resizes them", (False,), "set it to false"),
    "pad_size": NoEffect("do_pad decides, and must be false"),
}
"""Those of vision_tower/preprocessor_config.json."""

PARTS: dict[str, tuple[Table, str]] = {
    LANGUAGE: (TEXT, "llama"),
    TOWER: (VISION, "siglip_vision_model"),
    PROJECTOR: (PROJECTION, "v2l_projector"),
}
"""The folders of a checkpoint's parts: their fields, and the model_type that each must have."""


def check_settings(checkpoint: Checkpoint) -> None:
    """Refuse what a VILA1.5 checkpoint asks for and would not get.

    Raises:
        CheckpointError: There is such a field; the message names file and field.
    """
    root, file = checkpoint.config, checkpoint.shown(CONFIG_FILE)
    check_fields(root, ROOT, file)
    parts = {name: _checked_part(checkpoint, name) for name in PARTS}
    found, raw = image_section(checkpoint.root / TOWER)
    check_fields(raw, IMAGES, _shown(checkpoint, found))
    text, tower = parts[LANGUAGE], parts[TOWER]
    for field, name, held in (
        ("hidden_size", LANGUAGE, text),
        ("mm_hidden_size", TOWER, tower),
    ):
        if root.get(field) not in (None, held.get("hidden_size")):
            raise CheckpointError(
                f"{file}: {field} is {brief(root[field])}, and the hidden_size of {name} is "
                f"{brief(held.get('hidden_size'))}; correct one of them"
            )
    layer, layers = root.get(SELECT_LAYER), tower.get("num_hidden_layers")
    if layer is not None and layers is not None and not -layers - 1 <= layer <= layers:
        raise CheckpointError(
            f"{file}: {SELECT_LAYER} is {layer}, and {TOWER} has {layers} layers; give a number from "
            f"{-layers - 1} to {layers}"
        )
    side = settings_from_checkpoint(checkpoint.root)["images"]["side"]
    if tower.get("image_size") not in (None, side):
        raise CheckpointError(
            f"{_shown(checkpoint, found)}: size gives pictures of {side} pixels, and image_size of {TOWER} "
            f"is {brief(tower.get('image_size'))}; correct one of them"
        )


def _checked_part(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """A part's configuration, after it was checked by itself and against the copy in config.json."""
    table, kind = PARTS[name]
    path, within, own = part_config(checkpoint.root, name)
    file, copied = _shown(checkpoint, path), f"{name}_cfg"
    place = f"{file}: {within}" if within else file
    if own.get("model_type") != kind:
        raise CheckpointError(
            f"{place}: model_type is {brief(own.get('model_type'))}, where VILA1.5 has {kind}; take a "
            "checkpoint of VILA1.5"
        )
    check_fields(own, table, file, within)
    if name == LANGUAGE:
        _check_rope(own, place)
    whole = checkpoint.shown(CONFIG_FILE)
    copy = read_as(dict[str, Any], checkpoint.config.get(copied) or {}, f"{whole}: {copied}")
    check_fields(copy, table, whole, copied)
    for field in sorted((table.keys() - CONFIG.keys()) & copy.keys()):
        if isinstance(table[field], Honoured) and copy[field] not in (None, own.get(field)):
            raise CheckpointError(
                f"{whole}: {copied}.{field} is {brief(copy[field])}, and in {file}, which goes before it, "
                f"{brief(own.get(field))}; correct one of them"
            )
    return own


def _check_rope(text: Mapping[str, Any], place: str) -> None:
    """Refuse rotary positions of several axes, which this language model does not have."""
    where, rope = read_rope(text, place)
    if rope.get("mrope_section") is not None or "mrope" in rope.values():
        raise CheckpointError(
            f"{where}: asks for positions of several axes (mrope), and VILA1.5's have one; remove it"
        )


def _shown(checkpoint: Checkpoint, path: Path) -> str:
    """A file of the checkpoint as the user would name it."""
    return checkpoint.shown(path.relative_to(checkpoint.root).as_posix())
