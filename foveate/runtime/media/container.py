"""A video container, opened so that nothing but its own bytes is read, and what its packets say."""

from __future__ import annotations

import errno
import os
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from foveate.errors import FoveateError, ImageError, needed
from foveate.runtime.media.frame_times import NONE, Packets
from foveate.runtime.media.picture_file import DAMAGED
from foveate.runtime.media.pictures import MAX_PIXELS

if TYPE_CHECKING:
    from av import Packet, VideoStream
    from av.container import InputContainer

FORMATS = (
    "apng,asf,avi,cavsvideo,dirac,dv,flv,gif,gxf,h261,h263,h264,hevc,ivf,m4v,matroska,webm,mjpeg,"
    "mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,vc1,vvc,wtv,yuv4mpegpipe"
)
"""Containers that hold all of a film themselves: no playlist, and none that stands for several files."""
MOST_PACKETS = 1 << 24

_OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
_RESYNCING = "matroska"
"""A demuxer that skips what it cannot read, so that its complaints while opening count as well."""
_PROMISING = ("matroska", "flv", "avi", "asf", "ivf", "mxf")
"""Demuxers that tell how long a film lasts from its header alone."""
_MOST_RATE = 1000
"""Frames a second; headers that tell more tell how finely time is counted."""
_CLOCK_MAY_JUMP = 0x0200
"""FFmpeg's AVFMT_TS_DISCONT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """A video stream, read through once without decoding it.

    Attributes:
        name: The file, as messages call it.
        stream: Which of the container's streams it is.
        height: Of a frame as it is coded, in pixels.
        width: Likewise.
        packets: What its packets say, those without data left out.
        marked: How many of them the container marks as damaged.
        promised: When all streams end by the file's own word, and when what there is of them ends, in
            seconds of its clock; None where it does not say.
    """

    name: str
    stream: int
    height: int
    width: int
    packets: Packets
    marked: int
    promised: tuple[float, float] | None


class _Reader:
    """A file's bytes for the demuxer, without the file's name."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.read, self.tell = file, file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; a damaged file may name one that there cannot be, which is an error to FFmpeg."""
        try:
            return self.file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -errno.EINVAL


@contextmanager
def open_container(file: BinaryIO, name: str) -> Iterator[InputContainer]:
    """Open a container; errors of the library become ours.

    Raises:
        ImageError: It cannot be read as a video.
        MissingDependencyError: PyAV is not installed.
    """
    with needed("reading videos needs PyAV, which is not installed: pip install 'foveate[video]'"):
        import av
    file.seek(0)
    try:
        opened = av.open(_Reader(file), "r", options=_OPTIONS, io_open=_refuse)
        with opened as container:
            yield container
    except FoveateError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{name} asks for more memory than there is: it is too large, or damaged; make it smaller"
        ) from error
    except av.error.ArgumentError as error:
        raise ImageError(
            f"{name} is in no container that is read here; convert it to MP4, WebM or MKV"
        ) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{name} cannot be read as a video ({reason}); {DAMAGED}") from error


def read_film(file: BinaryIO, name: str) -> Film:
    """Find the film in a file and read through all of its packets, which takes no decoding.

    Raises:
        ImageError: No video in it, frames too large, or a container that is cut short or damaged.
    """
    with _complaints() as logs, open_container(file, name) as container:
        opened = len(logs)
        stream = _film_stream(container, name)
        pixels = stream.codec_context.width * stream.codec_context.height
        if pixels > MAX_PIXELS:
            raise ImageError(
                f"{name} has frames of {pixels} pixels, over the limit of {MAX_PIXELS}; "
                "make them smaller"
            )
        tables = {key: array("q") for key in ("pts", "dts", "duration", "key", "shown")}
        marked, last = 0, None
        for packet in container.demux():
            last = _later(last, packet)
            if packet.stream_index != stream.index or not packet.size:
                continue
            if len(tables["pts"]) == MOST_PACKETS:
                raise ImageError(f"{name} has over {MOST_PACKETS} frames; cut it")
            tables["pts"].append(NONE if packet.pts is None else packet.pts)
            tables["dts"].append(NONE if packet.dts is None else packet.dts)
            tables["duration"].append(packet.duration or 0)
            tables["key"].append(packet.is_keyframe)
            tables["shown"].append(not packet.is_discard)
            marked += packet.is_corrupt
        demuxer = container.format.name
        heard = logs if demuxer.startswith(_RESYNCING) else logs[opened:]
        said = [message.strip() for _, source, message in heard if source == demuxer]
        if demuxer == "mpegts" and _ends_within_a_packet(file):
            marked += 1
        if demuxer == "gif" and not _ends_with(file, b";"):
            said.append("its end is missing")
        restarts = bool(int(container.format.flags) & _CLOCK_MAY_JUMP)
        if said or (marked and not restarts):
            raise ImageError(
                f"{name} is cut short or damaged ({said[0] if said else 'a frame lacks its end'}); "
                f"{DAMAGED}"
            )
        tick = Fraction(stream.time_base or 0)
        columns = {key: np.frombuffer(table, np.int64) for key, table in tables.items()}
        if demuxer == "avi" and stream.codec_context.has_b_frames:
            # Such a file has decoding times alone, which stand in for the others.
            columns["pts"] = np.full_like(columns["pts"], NONE)
        promised = None
        if container.duration and last is not None and demuxer.startswith(_PROMISING):
            promised = container.duration / 1e6, last
        return Film(
            name=name,
            stream=stream.index,
            height=stream.codec_context.height,
            width=stream.codec_context.width,
            packets=Packets(
                pts=columns["pts"],
                dts=columns["dts"],
                duration=columns["duration"],
                key=columns["key"] > 0,
                shown=columns["shown"] > 0,
                tick=tick,
                rates=_rates(stream),
                restarts=restarts,
            ),
            marked=marked,
            promised=promised,
        )


def _refuse(url: str, *_: Any) -> Any:
    """No container opens another file."""
    raise PermissionError(f"it refers to {url[:80]!r}, and nothing but the file itself is opened")


def _film_stream(container: InputContainer, name: str) -> VideoStream:
    """The stream that is the film: the container's default, or else the first, and no cover picture."""
    from av.stream import Disposition

    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    moving = [one for one in container.streams.video if not one.disposition & covers]
    if not moving:
        cover = " but a cover picture" if container.streams.video else ""
        raise ImageError(f"{name} holds no video{cover}; give a file that does")
    for stream in moving:
        if stream.disposition & Disposition.default:
            break
    else:
        stream = moving[0]
    if stream.codec_context is None:
        raise ImageError(
            f"{name} is coded as nothing that PyAV decodes; convert it to H.264 or VP9"
        )
    if not stream.time_base or stream.time_base < 0:
        raise ImageError(f"{name} does not say how its time is counted; {DAMAGED}")
    return stream


def _rates(stream: VideoStream) -> tuple[Fraction, ...]:
    """Frames a second as the stream's headers tell them, and as the demuxer has estimated them."""
    told = (
        stream.codec_context.framerate,
        stream.guessed_rate,
        stream.average_rate,
        stream.base_rate,
    )
    rates = (Fraction(rate) for rate in told if rate)
    return tuple(dict.fromkeys(rate for rate in rates if 0 < rate <= _MOST_RATE))


def _ends_with(file: BinaryIO, mark: bytes) -> bool:
    """Whether a file's last byte is `mark`."""
    file.seek(-1, os.SEEK_END)
    return file.read(1) == mark


def _ends_within_a_packet(file: BinaryIO) -> bool:
    """Whether a transport stream of 188-byte packets, or of such with 4 bytes before each, is cut short."""
    size = file.seek(0, os.SEEK_END)
    for packet, begin in ((188, 0), (192, 4)):
        file.seek(0)
        head = file.read(5 * packet)[begin::packet]
        if head == b"G" * 5:
            return size % packet != 0
    return False


def _later(last: float | None, packet: Packet[Any]) -> float | None:
    """When what has been read ends, in seconds of the container's clock."""
    if packet.pts is None or packet.time_base is None:
        return last
    ends = float((packet.pts + (packet.duration or 0)) * packet.time_base)
    return ends if last is None else max(last, ends)


_listening = threading.Lock()
_listeners = 0
_before: tuple[int | None, bool] = (None, True)


@contextmanager
def _complaints() -> Iterator[list[tuple[int, str, str]]]:
    """The errors that FFmpeg logs in this thread: level, source, message. PyAV drops them by default."""
    global _listeners, _before
    try:
        from av import logging
    except ImportError:
        yield []
        return
    with _listening:
        if not _listeners:
            _before = logging.get_level(), logging.get_skip_repeated()
            if _before[0] is None:
                logging.set_level(logging.ERROR)
            logging.set_skip_repeated(False)
        _listeners += 1
    try:
        with logging.Capture() as logs:
            yield logs
    finally:
        with _listening:
            _listeners -= 1
            if not _listeners:
                logging.set_level(_before[0])
                logging.set_skip_repeated(_before[1])
