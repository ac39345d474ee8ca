"""onnxruntime on graphs of its contrib operators."""
