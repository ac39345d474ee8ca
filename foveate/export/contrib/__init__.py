"""Graphs made of onnxruntime's own fused operators: for onnxruntime alone, and faster there."""
