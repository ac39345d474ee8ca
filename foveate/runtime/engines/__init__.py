"""Backends: one small class each."""

from foveate.runtime.engines.base import Engine, Feeds, Value

__all__ = ["Engine", "Feeds", "Value"]
