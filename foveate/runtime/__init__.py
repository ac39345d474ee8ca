"""The slim half: numpy, onnxruntime, tokenizers, Pillow; never torch or transformers."""

from foveate.runtime.answer import Answer, Timing, Visual
from foveate.runtime.chat import Chat
from foveate.runtime.encoded import EncodedMedia
from foveate.runtime.generation import Stream
from foveate.runtime.language.prefix_cache import PrefixCache
from foveate.runtime.media.video import Frames, VideoFile, VideoWarning, read_frames, read_video
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.request import Request

__all__ = [
    "Answer",
    "Chat",
    "EncodedMedia",
    "Frames",
    "Pipeline",
    "PrefixCache",
    "Request",
    "Stream",
    "Timing",
    "VideoFile",
    "VideoWarning",
    "Visual",
    "read_frames",
    "read_video",
]
