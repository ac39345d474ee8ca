"""Qwen2-VL's torch half."""

from foveate.export.qwen2_vl.plans import context, facts, load, plans, tokens
from foveate.export.qwen2_vl.reference import reference

__all__ = ["context", "facts", "load", "plans", "reference", "tokens"]
