"""onnxruntime on graphs of standard operators."""
