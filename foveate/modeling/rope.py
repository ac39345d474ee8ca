"""Rotary positions of a language model: which kinds there are, and the rates at which they turn."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from foveate.errors import CheckpointError
from foveate.modeling.fields import (
    Count,
    Factor,
    Honoured,
    Number,
    Refused,
    Table,
    check_fields,
    read_as,
)

FIXED = ("default", "mrope", "linear", "llama3", "proportional", "yarn")
"""Kinds whose rates are the same for every prompt."""
GROWING = "dynamic"
"""The kind whose rates change only beyond the model's context, where no prompt gets."""

ROPE: Table = {
    "rope_type": Honoured(str),
    "type": Honoured(str),
    "rope_theta": Honoured(Factor),
    "mrope_section": Honoured(list[Count]),
    "factor": Honoured(Factor),
    "original_max_position_embeddings": Honoured(Count),
    "attention_factor": Honoured(Factor),
    "beta_fast": Honoured(Number),
    "beta_slow": Honoured(Number),
    "mscale": Honoured(Number),
    "mscale_all_dim": Honoured(Number),
    "truncate": Honoured(bool),
    "low_freq_factor": Honoured(Factor),
    "high_freq_factor": Honoured(Factor),
    "partial_rotary_factor": Refused("heads of which only a part is turned", (1, 1.0)),
    "mrope_interleaved": Refused(
        "axes that alternate within a head, as Qwen3-VL has them", (False,)
    ),
}
"""Fields of rope_parameters, or rope_scaling in older checkpoints."""


def read_rope(text: Mapping[str, Any], place: str) -> tuple[str, dict[str, Any]]:
    """A language model's rope settings as transformers takes them, and where they stand.

    Args:
        text: Its part of config.json.
        place: The file and the part.

    Raises:
        CheckpointError: A kind or a field that cannot be honoured.
    """
    field = "rope_scaling" if text.get("rope_scaling") else "rope_parameters"
    rope = dict(text.get(field) or {})
    where = f"{place}: {field}"
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in (*FIXED, GROWING):
        raise CheckpointError(
            f"{where}: rope_type is {kind!r}, which Foveate does not have; it has "
            f"{', '.join((*FIXED, GROWING))}"
        )
    check_fields(rope, ROPE, place, field)
    return where, rope


def check_sections(
    rope: Mapping[str, Any], where: str, usual: Sequence[int], axes: int, half: int
) -> tuple[int, ...]:
    """How m-rope splits half a head among its axes.

    Args:
        rope: The rope settings.
        where: The file and the part they are in.
        usual: transformers' own split where there is none.
        axes: How many parts there must be.
        half: What they must add up to.

    Raises:
        CheckpointError: They do not.
    """
    field = f"{where}: mrope_section"
    given = rope.get("mrope_section")
    sections = tuple(read_as(list[Count], list(usual) if given is None else given, field))
    if len(sections) != axes or sum(sections) != half:
        what = "is missing, and transformers would take" if given is None else "is"
        raise CheckpointError(
            f"{field} {what} {list(sections)}; it must be {axes} numbers that add up to half a head, {half}"
        )
    return sections


def settle(rotary: nn.Module) -> None:
    """Hold on to the rates of a rotary embedding that would compute them anew in every call.

    They change only for positions beyond the model's context, which no prompt has.
    """
    if getattr(rotary, "rope_type", None) == GROWING:
        rotary.rope_type = "default"  # type: ignore[assignment]


def rates(rotary: nn.Module) -> tuple[Tensor, float]:
    """What a position is multiplied by, float32 [head_dim / 2], and what cosines and sines are."""
    inverse: Tensor = rotary.inv_freq  # type: ignore[assignment]
    return inverse.detach().float().cpu(), float(rotary.attention_scaling)  # type: ignore[arg-type]
