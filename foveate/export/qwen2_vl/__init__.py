"""Qwen2-VL's torch half."""

from foveate.calibration.qwen2_vl import tokens
from foveate.export.qwen2_vl.contrib import fused
from foveate.export.qwen2_vl.contrib_cases import fused_cases
from foveate.export.qwen2_vl.plans import blank, context, facts, load, plans
from foveate.export.qwen2_vl.reference import reference

__all__ = [
    "blank", "context", "facts", "fused", "fused_cases", "load", "plans", "reference", "tokens",
]  # fmt: skip
