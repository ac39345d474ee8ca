"""Graphs of onnxruntime's contrib operators: for onnxruntime alone, and faster there."""
