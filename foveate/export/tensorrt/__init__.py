"""Bundle to TensorRT engines: needs tensorrt or tensorrt_rtx, and no torch."""
