"""What a conversation is about: the pictures and videos that its parts show, by their headers."""

from collections.abc import Iterator, Sequence
from typing import Any

from foveate.errors import PromptError
from foveate.families.base import Family, Medium
from foveate.runtime.media.pictures import MAX_PIXELS, find_pictures
from foveate.runtime.media.sources import Check, check_pictures, due, open_media

_ARGUMENTS = {"image": "images", "video": "video"}
_NOTHING = object()


def open_placed(
    places: Sequence[tuple[str, Any]],
    images: Any,
    video: Any,
    family: Family,
    *,
    max_pixels: int = MAX_PIXELS,
    check: Check = len,
) -> list[Medium]:
    """Look at what the parts of a conversation show, in their order.

    Args:
        places: Of each part that shows something, its type, "image" or "video", and what it carries;
            None where it takes the next of the pictures, or the video.
        images: Paths, bytes, PIL images or uint8 arrays, for the parts that carry none.
        video: A video for the part that carries none.
        family: Whose frames they are to be.
        max_pixels: The most pixels of each.
        check: See `open_media`; called with the media of so far after each video, too.

    Raises:
        PromptError: More or fewer pictures or videos than such parts.
        ImageError: What cannot be read.
    """
    given: dict[str, Iterator[Any]] = {
        "image": iter(() if images is None else check_pictures(images)),
        "video": iter(() if video is None else (video,)),
    }
    sources = [
        (kind, _next_given(given, kind, number) if carried is None else carried)
        for number, (kind, carried) in enumerate(places, start=1)
    ]
    for kind, rest in given.items():
        if next(rest, _NOTHING) is not _NOTHING:
            count = sum(one == kind and carried is None for one, carried in places)
            raise PromptError(
                f"{_ARGUMENTS[kind]} has more than the {count} that the messages have places for; "
                f'add a part {{"type": "{kind}"}} where each is shown, or leave it out.'
            )
    shown = [source for kind, source in sources if kind == "image"]
    pictures = iter(find_pictures(shown, max_pixels=max_pixels))
    found: list[Medium] = []
    for kind, source in sources:
        if kind == "image":
            found.append(next(pictures))
        else:
            found += open_media(None, source, family, max_pixels=max_pixels, check=check)
        if kind == "video" or due(len(found)):
            check(found)
    return found


def _next_given(given: dict[str, Iterator[Any]], kind: str, number: int) -> Any:
    """What the `number`th part that shows something takes, which carries nothing."""
    source = next(given[kind], _NOTHING)
    if source is _NOTHING:
        raise PromptError(
            f"The messages have more parts of type {kind} than {_ARGUMENTS[kind]} gives: there is none "
            f"for picture or video {number} of the conversation; give it, or leave the part out."
        )
    return source
