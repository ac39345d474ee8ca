"""What is asked of a pipeline."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, TypedDict

from foveate.errors import FoveateError
from foveate.families.base import Message, Prompt
from foveate.runtime.answer import Timing
from foveate.runtime.keep import Keep, Rank, Selection
from foveate.runtime.language.base import Generation
from foveate.runtime.language.prefix_cache import PrefixCache
from foveate.runtime.media.pictures import Picture
from foveate.runtime.media.sources import VideoSource
from foveate.runtime.stopping import Flag

if TYPE_CHECKING:
    from foveate.runtime.encoded import EncodedMedia


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt about pictures or a video, and how it is to be answered.

    Attributes:
        prompt: The instruction; or messages as chat templates take them, whose parts of type "image"
            and "video" say where pictures are shown. Where the last one is the assistant's, the answer
            goes on with it. The last user turn is the instruction.
        images: Paths, bytes, PIL images or uint8 arrays [H, W, 3]; the prompt comes after them, or
            messages show them in this order.
        video: A video instead of pictures: the path of a file or of an animated picture, or a `VideoFile`,
            of which the model's own number of frames is taken, evenly apart in time; or frames of one
            size: a uint8 array [F, H, W, 3], or a list of what `images` takes. Two frames make one
            step in time.
        encoded: What `Pipeline.encode` gave, instead of pictures or a video.
        prefix: Keys and values of an earlier request, to begin with as far as the prompt begins alike;
            it holds those of this one afterwards. Where the language model cannot, it stays empty.
        keep: A ratio in (0, 1], a count of visual tokens, or "auto": the fewest that hold a share of the
            relevance, as the bundle's compressor was calibrated. None takes the bundle's default.
        kept: The ordinals of the visual tokens to keep, in place of `keep` and a ranking.
        rank_by: Another text to rank the visual tokens by; None ranks by the prompt.
        rank: "together" gives all pictures one budget, "each" gives every picture its own.
        max_pixels: Larger pictures and frames are shrunk to at most this area; None takes the
            checkpoint's own.
        min_pixels: Smaller pictures and frames are enlarged to about this area; None takes the
            checkpoint's own.
        max_new_tokens: The most tokens to generate; None takes the bundle's default.
        temperature: 0 is greedy; None takes the checkpoint's own, or 0 where it does not sample.
        top_p: Nucleus sampling's probability mass; None takes the checkpoint's own.
        top_k: Sample from this many best tokens only, 0 from all; None takes the checkpoint's own.
        seed: Makes sampling repeatable; None samples anew every time.
        repetition_penalty: None takes the checkpoint's own.
        stop_tokens: Token ids that end the answer, beside the checkpoint's own.
        ignore_eos: Go on past the checkpoint's own stop tokens, to `max_new_tokens`.
        deadline: Seconds from the call after which the answer ends; None for no such limit. It is looked at
            before vision, compression, prefill and each later token, none of which is broken off.
        cancel: A `threading.Event` that ends the answer in the same way when another thread sets it.
        skip_special_tokens: Leave special tokens, such as the marks of objects and boxes, out of the
            answer's text.
    """

    prompt: str | Sequence[Message]
    _: KW_ONLY
    images: Iterable[Picture] | None = None
    video: VideoSource | None = None
    encoded: "EncodedMedia | None" = None
    prefix: PrefixCache | None = None
    keep: Keep | None = None
    kept: Iterable[int] | None = None
    rank_by: str | None = None
    rank: Rank = "together"
    max_pixels: int | None = None
    min_pixels: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    stop_tokens: Iterable[int] = ()
    ignore_eos: bool = False
    deadline: float | None = None
    cancel: Flag | None = None
    skip_special_tokens: bool = True


class Options(TypedDict, total=False):
    """The fields of `Request` beside its prompt, as `Pipeline.generate` and `stream` take them by name."""

    images: Iterable[Picture] | None
    video: VideoSource | None
    encoded: "EncodedMedia | None"
    prefix: PrefixCache | None
    keep: Keep | None
    kept: Iterable[int] | None
    rank_by: str | None
    rank: Rank
    max_pixels: int | None
    min_pixels: int | None
    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    repetition_penalty: float | None
    stop_tokens: Iterable[int]
    ignore_eos: bool
    deadline: float | None
    cancel: Flag | None
    skip_special_tokens: bool


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request within all limits, prepared for the graphs.

    Attributes:
        media: Its pictures or its video, prepared, or encoded before.
        prompt: Its tokens, with all visual ones.
        selection: Which visual tokens to keep.
        ranked_by: The prompt that ranks them, where that is another.
        generation: How it is answered.
        timing: Seconds so far.
    """

    media: "EncodedMedia"
    prompt: Prompt
    selection: Selection
    ranked_by: Prompt | None
    generation: Generation
    timing: Timing


@contextmanager
def naming(number: int) -> Iterator[None]:
    """Say in errors which request of a batch they are about."""
    try:
        yield
    except FoveateError as error:
        raise type(error)(f"requests[{number}]: {error}") from error
