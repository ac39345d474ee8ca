"""Builds TensorRT engines of a bundle's graphs; needs tensorrt or tensorrt_rtx, and no torch."""
