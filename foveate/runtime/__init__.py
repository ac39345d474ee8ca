"""The slim half: numpy, onnxruntime, tokenizers, Pillow; never torch or transformers."""

from foveate.runtime.answer import Answer, Timing, Visual
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.request import Request
from foveate.runtime.stream import Stream

__all__ = ["Answer", "Pipeline", "Request", "Stream", "Timing", "Visual"]
