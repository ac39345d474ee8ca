"""A video file to frames: which, how many, and as pictures."""

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from PIL.Image import Image, Resampling

from foveate.errors import ImageError
from foveate.families.base import FrameRule
from foveate.runtime.checks import Check, number, optional, whole
from foveate.runtime.media.animation import find_animation
from foveate.runtime.media.container import Film, read_film
from foveate.runtime.media.decode import Tally, decode
from foveate.runtime.media.files import open_local
from foveate.runtime.media.frame_times import FrameTimes, frame_times, recounted
from foveate.runtime.media.picture_file import DAMAGED
from foveate.runtime.media.upright import upright

_MISSING = 0.1
"""Seconds by which a film may end before the time that its file tells."""
_ROUNDING = Fraction(1, 1_000_000)
"""Seconds by which a time may be off for being written in binary or with few digits."""
_COUNT = optional(whole(ImageError, 1))
_OPTIONS: Mapping[str, Check] = {
    "fps": optional(number(ImageError, "frames a second, more than 0", lambda value: value > 0)),
    "frames": _COUNT,
    "start": number(
        ImageError, "seconds after the first frame, 0 or more", lambda value: value >= 0
    ),
    "end": optional(number(ImageError, "seconds after the first frame", lambda value: True)),
}
"""What the fields of a `VideoFile` beside its path may be."""


class VideoWarning(UserWarning):
    """A video that can be read and may lack frames."""


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video file, and what to take of it.

    Attributes:
        path: The file.
        fps: Frames to take for each second; None takes the model's rate.
        frames: How many frames to take, instead of a rate.
        start: Where to begin, in seconds after the first frame.
        end: Where to end, likewise; None takes the film to its end.
    """

    path: str | os.PathLike[str]
    fps: float | None = None
    frames: int | None = None
    start: float = 0.0
    end: float | None = None


def read_video(
    path: str | os.PathLike[str],
    fps: float | None = None,
    frames: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    *,
    rule: FrameRule | None = None,
    max_pixels: int | None = None,
) -> list[Image]:
    """Decode a video's frames, evenly apart in time from its first one, turned as the file says.

    A film, or the part of it from `start` to `end`, of T seconds gives n = T · fps frames: those on the
    screen at 0, T/n, 2T/n …; n is at least 4 and at most 768 or as many as there are, and even
    (one frame stays one). Only what they need is decoded, and no other file or address is opened.

    Args:
        path: The file.
        fps: Frames for each second; None takes the rule's, which is 2.
        frames: How many frames instead; exactly so many come.
        start: Where to begin, in seconds after the first frame.
        end: Where to end, likewise; None takes the film to its end.
        rule: A model family's numbers in place of these.
        max_pixels: Shrink larger frames to this area (width x height), each as soon as it is decoded,
            so that no more than one is held whole; None leaves them as they are.

    Returns:
        RGB pictures of one size.

    Raises:
        ImageError: No video that can be read, a damaged one, or frames that it does not have.
        MissingDependencyError: PyAV is not installed.
    """
    file = VideoFile(path, fps, frames, start, end)
    return read_frames(file, rule=rule, max_pixels=max_pixels).pictures


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of a video file, and when each is shown.

    Attributes:
        pictures: In RGB, all of one size.
        seconds: When each comes on the screen, in seconds after the film's first frame.
    """

    pictures: list[Image]
    seconds: list[float]


def read_frames(
    file: VideoFile, *, rule: FrameRule | None = None, max_pixels: int | None = None
) -> Frames:
    """Decode a video's frames as `read_video` does, with their times.

    Args:
        file: The file, and what to take of it.
        rule: A model family's numbers, such as `Pipeline.frame_rule`; None takes the usual ones.
        max_pixels: See `read_video`.

    Raises:
        ImageError: No video that can be read, a damaged one, or frames that it does not have.
        MissingDependencyError: PyAV is not installed.
    """
    rule = rule or FrameRule()
    check_options(file)
    _COUNT("max_pixels", max_pixels)
    animation = find_animation(file.path)
    if animation is not None:
        chosen = choose(file, animation.times, rule, animation.name)
        pictures = [_shrunk(frame, max_pixels) for frame in animation.pictures(chosen)]
        return Frames(pictures, [float(animation.times.start(number)) for number in chosen])
    return plan_frames(file, rule).frames(lambda frame: _shrunk(frame, max_pixels))


def _shrunk(frame: Image, most: int | None) -> Image:
    """A frame of at most so many pixels, its aspect kept."""
    if most is None or frame.width * frame.height <= most:
        return frame
    scale = math.sqrt(most / (frame.width * frame.height))
    size = max(1, int(frame.width * scale)), max(1, int(frame.height * scale))
    return frame.resize(size, Resampling.BICUBIC)


@dataclass(frozen=True, slots=True)
class FramePlan:
    """Which frames of a video file to take; nothing of it is decoded yet.

    Attributes:
        file: The file, and what was asked of it.
        film: Its video stream.
        times: The stream's frames.
        chosen: Which of them, ascending; one twice where it is long on the screen.
        rule: How many a family takes.
        tally: What decoding took.
    """

    file: VideoFile
    film: Film
    times: FrameTimes
    chosen: tuple[int, ...]
    rule: FrameRule
    tally: Tally = field(default_factory=Tally)

    def pictures(self, fit: Callable[[Image], Image] | None = None) -> list[Image]:
        """Decode the frames, turned upright; see `frames`."""
        return self.frames(fit).pictures

    def frames(self, fit: Callable[[Image], Image] | None = None) -> Frames:
        """Decode the frames, turned upright, with their times.

        Args:
            fit: Makes each smaller as soon as it is decoded, so that no more than one is held whole.

        Raises:
            ImageError: A frame that cannot be decoded, or of another size than the first.
        """
        wanted, repeats = np.unique(np.array(self.chosen, np.int64), return_counts=True)
        size: tuple[int, int] | None = None
        pictures: list[Image] = []
        with open_local(self.file.path) as file:
            decoded = decode(file, self.film, self.times, wanted, self.tally)
            for frame, times in zip(decoded, repeats.tolist(), strict=False):
                picture = upright(frame)
                size = size or picture.size
                if picture.size != size:
                    raise ImageError(
                        f"{self.film.name} changes its size from {size[0]} x {size[1]} to "
                        f"{picture.width} x {picture.height} pixels; convert it to one size, or take "
                        "a part of it (start, end)"
                    )
                pictures += [picture if fit is None else fit(picture)] * times
        if len(pictures) == len(self.chosen):
            return Frames(pictures, [float(self.times.start(number)) for number in self.chosen])
        # Only decoding tells how many frames a stream without times has.
        if not self.tally.decoded:
            raise ImageError(f"{self.film.name} has no frame that can be decoded; {DAMAGED}")
        times = recounted(self.times, self.tally.decoded)
        chosen = choose(self.file, times, self.rule, self.film.name)
        return FramePlan(self.file, self.film, times, chosen, self.rule).frames(fit)


def plan_frames(file: VideoFile, rule: FrameRule) -> FramePlan:
    """Read through a video file without decoding it, and choose its frames.

    Raises:
        ImageError: No video that can be read, a damaged one, or frames that it does not have.
        MissingDependencyError: PyAV is not installed.
    """
    check_options(file)
    with open_local(file.path) as opened:
        film = read_film(opened, os.fsdecode(file.path))
    times = frame_times(film.packets)
    if times is None:
        raise ImageError(f"{film.name} has no frame that can be decoded; {DAMAGED}")
    if film.promised is not None and file.end is None:
        promised, there = film.promised
        if promised - there > _MISSING + 2 * float(times.seconds) / times.count:
            raise ImageError(
                f"{film.name} is cut short: it is to last {promised:.3f} seconds and ends after "
                f"{there:.3f}; use another copy of it, or take the part that is there (end)"
            )
    marked = film.marked - times.jumps
    if marked > 0:
        warnings.warn(
            f"{film.name}: {marked} of {len(film.packets.pts)} packets are marked as damaged, so that "
            "frames may be missing",
            VideoWarning,
            stacklevel=2,
        )
    return FramePlan(file, film, times, choose(file, times, rule, film.name), rule)


def check_options(file: VideoFile) -> None:
    """Refuse what is no rate, count or time.

    Raises:
        ImageError: Such a field.
    """
    if not isinstance(file.path, (str, os.PathLike)):
        raise ImageError(f"a {type(file.path).__name__} is no path of a video; give a path")
    if file.fps is not None and file.frames is not None:
        raise ImageError("fps and frames were given; give a rate or a number of frames, not both")
    for name, check in _OPTIONS.items():
        check(name, getattr(file, name))
    if file.end is not None and file.end <= file.start:
        raise ImageError(f"end is {file.end}, not after start, {file.start}; give a later one")


def choose(file: VideoFile, times: FrameTimes, rule: FrameRule, name: str) -> tuple[int, ...]:
    """The frames to take of the film `name`: those on the screen at evenly spaced moments, or evenly numbered.

    Raises:
        ImageError: Frames that the film does not have.
    """
    begin = _moment(times, file.start)
    end = times.seconds if file.end is None else _moment(times, file.end)
    if begin >= times.seconds or end > times.seconds + times.seconds / times.count:
        raise ImageError(
            f"{name} lasts {float(times.seconds):.3f} seconds; start before that and end by then"
        )
    end = min(end, times.seconds)
    first, last = times.on_screen(begin), times.on_screen(end)
    there = last - first + (times.start(last) < end)
    count = file.frames
    if count is None:
        count = rule.count(end - begin, there, None if file.fps is None else _exact(file.fps))
    elif count > min(there, rule.most):
        raise ImageError(
            f"{count} frames were asked for; {name} has {there} there and "
            f"{rule.most} are taken at most"
        )
    if rule.by_number:
        return tuple(first + place * there // int(count) for place in range(int(count)))
    step = (end - begin) / count
    return tuple(times.on_screen(begin + place * step) for place in range(int(count)))


def _moment(times: FrameTimes, seconds: float) -> Fraction:
    """A time as it is written, or when a frame begins where that is meant: 20 / 30 is no third."""
    moment = _exact(seconds)
    begins = times.start(times.on_screen(moment + _ROUNDING))
    return begins if abs(begins - moment) <= _ROUNDING else moment


def _exact(value: float) -> Fraction:
    """A number as it is written: 0.1 is a tenth."""
    return Fraction(str(float(value)))
