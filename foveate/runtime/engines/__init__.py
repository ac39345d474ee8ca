"""Opened graphs: one small class a library."""

from foveate.runtime.engines.base import Engine, Feeds, Tensor, Value

__all__ = ["Engine", "Feeds", "Tensor", "Value"]
