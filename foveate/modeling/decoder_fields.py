"""What becomes of each field of the configuration of a decoder like Qwen2's."""

from collections.abc import Mapping
from typing import Any

from foveate.errors import CheckpointError
from foveate.modeling.common_fields import CONFIG
from foveate.modeling.fields import Count, Factor, Honoured, NoEffect, Refused, Table

_WINDOW = NoEffect("use_sliding_window decides, and must be false")

DECODER: Table = {
    **CONFIG,
    "vocab_size": Honoured(Count),
    "hidden_size": Honoured(Count),
    "intermediate_size": Honoured(Count),
    "num_hidden_layers": Honoured(Count),
    "num_attention_heads": Honoured(Count),
    "num_key_value_heads": Honoured(Count),
    "hidden_act": Honoured(str),
    "max_position_embeddings": Honoured(Count),
    "rms_norm_eps": Honoured(Factor),
    "rope_parameters": Honoured(dict[str, Any]),
    "rope_scaling": Honoured(dict[str, Any]),
    "rope_theta": Honoured(Factor),
    "tie_word_embeddings": Honoured(bool),
    "use_sliding_window": Refused(
        "sliding-window attention, which Foveate does not have",
        (False,),
        "set use_sliding_window to false if the checkpoint works without",
    ),
    "layer_types": Refused(
        "sliding-window attention, which Foveate does not have",
        lambda value, _: isinstance(value, list) and set(map(str, value)) <= {"full_attention"},
        "set use_sliding_window to false if the checkpoint works without",
    ),
    "sliding_window": _WINDOW,
    "max_window_layers": _WINDOW,
}
"""Those of text_config."""


def check_heads(section: Mapping[str, Any], place: str) -> None:
    """Refuse a hidden size that does not divide into attention heads.

    Args:
        section: A part of config.json.
        place: The file and the part.

    Raises:
        CheckpointError: It does not.
    """
    hidden, heads = section.get("hidden_size"), section.get("num_attention_heads")
    if hidden and heads and hidden % heads:
        raise CheckpointError(
            f"{place}: hidden_size is {hidden}, which {heads} heads (num_attention_heads) do not "
            "divide; correct it"
        )
