"""The families of multimodal models that Foveate knows. A new one is a file here and a line in _FAMILIES."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from foveate.errors import UnsupportedFamilyError
from foveate.families.base import CheckpointForm, Family
from foveate.families.llava_onevision import LlavaOnevision
from foveate.families.qwen2_vl import Qwen2VL
from foveate.families.vila import Vila

_FAMILIES: dict[str, type[Family]] = {
    "llava_onevision": LlavaOnevision,
    "qwen2_vl": Qwen2VL,
    "vila": Vila,
}


def names() -> tuple[str, ...]:
    """The families known, in alphabetical order."""
    return tuple(sorted(_FAMILIES))


def create(
    name: str,
    *,
    preprocessing: Mapping[str, Any],
    tokenizer: Tokenizer,
    chat_template: str,
    tokens: Mapping[str, int],
    levels: bool = False,
) -> Family:
    """Build the family `name` from what a bundle holds.

    Args:
        name: One of `names()`.
        preprocessing: What `settings_from_checkpoint` gave at export time.
        tokenizer: The checkpoint's; its truncation and padding are switched off.
        chat_template: The checkpoint's, Jinja text.
        tokens: Ids of the control tokens by role; each family's class says which it needs.
        levels: Whether the vision graph takes pictures as 8-bit levels and does the rest itself, as
            graphs of contrib operators do.

    Raises:
        UnsupportedFamilyError: No such family.
        BundleError: Parts that are wrong or do not fit together.
        PromptError: A chat template that cannot be compiled.
    """
    return _family(name)(preprocessing, tokenizer, chat_template, tokens, levels)


def settings_from_checkpoint(name: str, folder: Path) -> dict[str, Any]:
    """Read the preprocessing settings of a checkpoint of the family `name`, as JSON types.

    They are nested by what they are about: those of pictures stand under "images".

    Raises:
        UnsupportedFamilyError: No such family.
        CheckpointError: Settings that are missing, malformed or that the family cannot honour.
    """
    return _family(name).settings_from_checkpoint(folder)


def checkpoint_form(name: str) -> CheckpointForm:
    """How checkpoints of the family `name` are laid out.

    Raises:
        UnsupportedFamilyError: No such family.
    """
    return _family(name).form


def from_model_type(model_type: str) -> str:
    """The family's name for the `model_type` in a checkpoint's config.json.

    Raises:
        UnsupportedFamilyError: No family takes it.
    """
    known = {kind: name for name, family in _FAMILIES.items() for kind in family.model_types}
    if model_type not in known:
        raise UnsupportedFamilyError(
            f"Foveate knows no model of type {model_type!r}; it takes {', '.join(sorted(known))}."
        )
    return known[model_type]


def _family(name: str) -> type[Family]:
    if name not in _FAMILIES:
        raise UnsupportedFamilyError(
            f"Foveate knows no family {name!r}; it knows {', '.join(names())}."
        )
    return _FAMILIES[name]
