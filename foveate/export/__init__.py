"""Checkpoint to bundle, and bundle to engines; `export.tensorrt` needs no torch, the rest does."""
