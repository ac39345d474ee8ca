"""What becomes of each field of the configuration of SigLIP's vision tower."""

from foveate.modeling.common_fields import CONFIG
from foveate.modeling.fields import Count, Factor, Honoured, NoEffect, Refused, Table

SIGLIP: Table = {
    **CONFIG,
    "hidden_size": Honoured(Count),
    "intermediate_size": Honoured(Count),
    "num_hidden_layers": Honoured(Count),
    "num_attention_heads": Honoured(Count),
    "image_size": Honoured(Count),
    "patch_size": Honoured(Count),
    "hidden_act": Honoured(str),
    "layer_norm_eps": Honoured(Factor),
    "num_channels": Refused("another number of channels than pictures have", (3,)),
    "vision_use_head": NoEffect("tokens are taken before the head"),
}
"""Those of vision_config."""
