"""What holds of every model of transformers whose language model is a part, at `model.language_model`."""

from typing import Any, TypeVar

from foveate.modeling.language_model import Language
from foveate.modeling.rope import settle

ONE = TypeVar("ONE", bound=Any)


class Composite:
    """The methods of `TorchFamily` that such models share."""

    def set_attention(self, model: Any, attention: str) -> None:
        """Let the language model alone compute attention by this name."""
        model.set_attn_implementation({"text_config": attention})

    def context(self, model: Any) -> int:
        """The longest sequence that the language model was made for, in tokens."""
        return int(model.config.text_config.max_position_embeddings)

    def language(self, model: Any) -> Language:
        """The parts of the language model."""
        text = model.model.language_model
        return Language(text.embed_tokens, text.rotary_emb, text.layers, text.norm, model.lm_head)


def settled(model: ONE) -> ONE:
    """The model, its rotary rates the same for every prompt."""
    settle(model.model.language_model.rotary_emb)
    return model
