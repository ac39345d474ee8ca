"""Opened graphs: one small class a library."""

from foveate.runtime.engines.base import Engine, Feeds, Tensor, Value, length, on_host

__all__ = ["Engine", "Feeds", "Tensor", "Value", "length", "on_host"]
