"""The one check of arguments before any work: every field of a request, and how a bundle is loaded.

A new field of `Request`, or a new argument of `Pipeline.load`, gets a line in a table here. Numbers of
numpy become Python's; a bool where a number is meant, and whatever else a line does not take, is an error
that names the field and the value.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any

from foveate.bundle.manifest import Manifest
from foveate.errors import (
    BackendError,
    BundleError,
    BundleNotFoundError,
    ImageError,
    KeepError,
    LimitError,
    PromptError,
    RequestError,
    SamplingError,
)
from foveate.families.base import Message
from foveate.families.messages import Conversation
from foveate.runtime.checks import (
    Check,
    Unfit,
    flag,
    instance,
    items_of,
    number,
    optional,
    shown,
    text,
    whole,
    whole_numbers,
)
from foveate.runtime.encoded import EncodedMedia
from foveate.runtime.keep import REQUEST_FIX, checked_request_keep
from foveate.runtime.language.prefix_cache import PrefixCache
from foveate.runtime.media.sources import check_pictures, check_video
from foveate.runtime.memory_estimate import parse_memory
from foveate.runtime.request import Request
from foveate.runtime.sampling import SAMPLING
from foveate.runtime.stopping import Flag

MOST_REQUESTS = 4096
"""The most requests that are answered together."""
MOST_THREADS = 1024


def _path(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise Unfit
    path = os.fsdecode(value)
    if not path or "\0" in path:
        raise Unfit
    return path


def _prompt(value: Any) -> str | Sequence[Message]:
    if isinstance(value, str):
        return str.__str__(value)
    messages: Sequence[Message] = value
    Conversation.of(messages)
    return messages


def _flag(value: Any) -> Flag:
    if isinstance(value, type) or not isinstance(value, Flag):
        raise Unfit
    return value


REQUEST: Mapping[str, Check] = {
    "prompt": Check(PromptError, "the instruction as a str, or a list of messages", _prompt),
    "images": optional(Check(ImageError, "a list of pictures", check_pictures)),
    "video": optional(
        Check(ImageError, "a video file, or a list of frames of one size", check_video)
    ),
    "encoded": optional(instance(ImageError, EncodedMedia, "what Pipeline.encode gave")),
    "prefix": optional(instance(RequestError, PrefixCache, "a PrefixCache")),
    "keep": optional(Check(KeepError, REQUEST_FIX.removeprefix("give "), checked_request_keep)),
    "kept": optional(
        whole_numbers(KeepError, "a list of visual tokens' ordinals, whole numbers from 0 on")
    ),
    "rank_by": optional(text(PromptError, "the text to rank by as a str")),
    "rank": text(KeepError, "'together' or 'each'", ("together", "each")),
    "max_pixels": optional(whole(LimitError, 1)),
    "min_pixels": optional(whole(LimitError, 1)),
    "max_new_tokens": optional(whole(LimitError, 1)),
    **{
        name: check if name in ("top_k", "seed") else optional(check)
        for name, check in SAMPLING.items()
    },
    "stop_tokens": whole_numbers(SamplingError, "a list of token ids, whole numbers from 0 on"),
    "ignore_eos": flag(SamplingError),
    "deadline": optional(number(LimitError, "seconds above 0", lambda value: value > 0)),
    "cancel": optional(Check(LimitError, "a threading.Event, which another thread sets", _flag)),
    "skip_special_tokens": flag(RequestError),
}
"""What each field of a `Request` may be."""

LOADING: Mapping[str, Check] = {
    "path": Check(BundleNotFoundError, "the path of a bundle's folder", _path),
    "backend": text(BackendError, "a backend's name as a str, such as 'auto'"),
    "language": text(BackendError, "a language model's name as a str, such as 'auto'"),
    "target": optional(text(BackendError, "a target's name as a str")),
    "device": text(BackendError, "'auto', 'cpu' or 'cuda'"),
    "threads": whole(BackendError, 0, MOST_THREADS, ", where 0 leaves it to the backend"),
    "checksums": flag(BundleError),
    "max_picture_pixels": whole(LimitError, 1),
    "most_requests": optional(whole(LimitError, 1)),
    "most_waiting": optional(whole(LimitError, 0)),
    "memory_limit": Check(LimitError, "bytes, or a number and a unit", parse_memory),
}
"""What each argument of `Pipeline.load` may be."""


def check_request(request: Request, manifest: Manifest) -> Request:
    """Check a request by itself and against a bundle, before any of its pictures is opened.

    Returns:
        The same request, its numbers and texts of Python's own types.

    Raises:
        FoveateError: A field of another type or range, or fields that exclude each other: of the
            class that fits, naming the field and its value.
    """
    if not isinstance(request, Request):
        raise RequestError(f"{shown(request)} is no request; give a Request(prompt, images=[...])")
    checked = replace(
        request, **check_fields(**{one.name: getattr(request, one.name) for one in fields(Request)})
    )
    _check_together(checked)
    _check_vocabulary(checked, manifest.model.vocabulary)
    return checked


def check_fields(**values: object) -> dict[str, Any]:
    """Check some of a request's fields by themselves.

    Returns:
        The same fields, of Python's own types.

    Raises:
        FoveateError: One of another type or range, of the class that fits.
    """
    return {name: REQUEST[name](name, value) for name, value in values.items()}


def _check_together(request: Request) -> None:
    """Refuse fields that exclude each other."""
    if request.kept is not None and (request.keep is not None or request.rank_by is not None):
        raise KeepError("kept names the tokens to keep; leave out keep and rank_by beside it")
    if request.encoded is not None and (request.images is not None or request.video is not None):
        raise ImageError("encoded pictures were given; leave out images and video beside them")


def _check_vocabulary(request: Request, vocabulary: int) -> None:
    """Refuse stop tokens that the model never gives."""
    for token in request.stop_tokens:
        if token >= vocabulary:
            raise SamplingError(
                f"stop_tokens has {token} and the model's tokens end at {vocabulary - 1}, so that it "
                "would never be met; give ids of its tokens"
            )


def check_requests(requests: Iterable[Request]) -> list[Request]:
    """A batch as a list, its requests not checked yet.

    Raises:
        RequestError: No list of requests.
        LimitError: More than `MOST_REQUESTS`, or without end.
    """
    items = items_of(requests)
    if items is None:
        raise RequestError(
            f"requests is {shown(requests)}; give a list, such as [Request(prompt, images=[...])]"
        )
    asked = list(islice(items, MOST_REQUESTS + 1))
    if len(asked) > MOST_REQUESTS:
        raise LimitError(
            f"more than {MOST_REQUESTS} requests were asked at once; ask fewer at a time"
        )
    return asked


def check_loading(**arguments: object) -> dict[str, Any]:
    """Check the arguments of `Pipeline.load`, before anything is opened.

    Returns:
        The same arguments, of Python's own types.

    Raises:
        FoveateError: One of another type or range, of the class that fits.
    """
    given = {name: LOADING[name](name, value) for name, value in arguments.items()}
    if given.get("most_requests") is None and given.get("most_waiting") is not None:
        raise LimitError(
            "most_waiting says how many requests wait beyond most_requests; give that, too"
        )
    return given
