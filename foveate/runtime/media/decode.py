"""Chosen frames of a film, decoded from the keys before them and from nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from foveate.errors import ImageError
from foveate.runtime.media.container import Film, open_container
from foveate.runtime.media.frame_times import FrameTimes
from foveate.runtime.media.picture_file import DAMAGED
from foveate.runtime.media.pictures import MAX_PIXELS

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext

_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode", "max_pixels": str(MAX_PIXELS)}


@dataclass(slots=True)
class Tally:
    """What decoding took.

    Attributes:
        decoded: Frames that the decoder gave.
    """

    decoded: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """Packets to decode in one go.

    Attributes:
        begin: The first, a key.
        end: The last.
        wanted: Which frames are wanted of it, ascending.
    """

    begin: int
    end: int
    wanted: tuple[int, ...]


def decode(
    file: BinaryIO, film: Film, times: FrameTimes, wanted: NDArray[np.int64], tally: Tally
) -> Iterator[VideoFrame]:
    """Decode the frames `wanted`, each once, in order.

    Frames that are counted as they are decoded may turn out to be fewer, as `tally` then tells.

    Args:
        file: The film's.
        film: What `read_film` gave.
        times: Its frames.
        wanted: int64 [n], numbers of frames, ascending, none twice.
        tally: Counts.

    Raises:
        ImageError: A frame that cannot be decoded.
    """
    if times.packets is None:
        yield from _by_count(file, film, wanted, tally)
        return
    given = 0
    for frame in _from_keys(file, film, times, wanted, tally):
        yield frame
        given += 1
    if given < len(wanted):
        yield from _one_after_the_other(file, film, times, wanted[given:], tally)


def runs(times: FrameTimes, wanted: NDArray[np.int64]) -> list[Run]:
    """What to decode for the frames `wanted`; no packet stands in two runs."""
    assert times.packets is not None
    assert times.keys is not None
    found: list[Run] = []
    for number in wanted.tolist():
        packet = int(times.packets[number])
        key = int(times.keys[packet])
        if found and key <= found[-1].end:
            last = found.pop()
            begin, end = min(key, last.begin), max(packet, last.end)
            found.append(Run(begin, end, (*last.wanted, number)))
        else:
            found.append(Run(key, packet, (number,)))
    return found


def _from_keys(
    file: BinaryIO, film: Film, times: FrameTimes, wanted: NDArray[np.int64], tally: Tally
) -> Iterator[VideoFrame]:
    """Wanted frames, each decoded from its key; ends before the first that does not come so."""
    import av

    ranks = _ranks(film, times)
    with open_container(file, film.name) as container:
        context = _decoder(container, film)
        context.thread_type = "AUTO"
        packets = _packets(container, film)
        for run in runs(times, wanted):
            pending = list(run.wanted)
            try:
                for frame in _run(context, packets, run, times, ranks):
                    tally.decoded += 1
                    if not pending or frame.pts != pending[0] or frame.is_corrupt:
                        continue
                    yield frame
                    del pending[0]
            except av.FFmpegError:
                return
            if pending:
                return


def _run(
    context: VideoCodecContext,
    packets: Iterator[tuple[int, Packet[Any]]],
    run: Run,
    times: FrameTimes,
    ranks: NDArray[np.int64],
) -> Iterator[VideoFrame]:
    """The frames of a run, numbered in `pts`; of those that are not wanted, what others build on."""
    assert times.keys is not None
    wanted = frozenset(run.wanted)
    for index, packet in packets:
        # What comes after a key and is shown before it builds on what was before the key.
        if index < run.begin or times.keys[index] < run.begin:
            continue
        number = int(ranks[index])
        context.skip_frame = "DEFAULT" if number in wanted else "NONREF"
        yield from context.decode(_numbered(packet, number))
        if index == run.end:
            break
    yield from context.decode(None)
    context.flush_buffers()


def _one_after_the_other(
    file: BinaryIO, film: Film, times: FrameTimes, wanted: NDArray[np.int64], tally: Tally
) -> Iterator[VideoFrame]:
    """Wanted frames out of all, for streams whose keys do not do; a packet without a frame repeats the last.

    Raises:
        ImageError: Damage in what a wanted frame is made of.
    """
    assert times.packets is not None
    assert times.keys is not None
    ranks, failed = _ranks(film, times), set[int]()
    pending = wanted.tolist()
    previous: VideoFrame | None = None
    with open_container(file, film.name) as container:
        for frame in _all(container, film, times, ranks, failed):
            tally.decoded += frame is not None
            number = times.count if frame is None else cast(int, frame.pts)
            while pending and pending[0] <= number:
                packet = int(times.packets[pending[0]])
                key = int(times.keys[packet])
                shown = frame if pending[0] == number else previous
                if (
                    shown is None
                    or shown.is_corrupt
                    or cast(int, shown.pts) < ranks[key]
                    or not failed.isdisjoint(range(key, packet + 1))
                ):
                    raise ImageError(
                        f"{film.name} is damaged: frame {pending[0] + 1} of {times.count} cannot be "
                        f"decoded; {DAMAGED}"
                    )
                yield shown
                del pending[0]
            if not pending:
                return
            previous = frame


def _all(
    container: InputContainer,
    film: Film,
    times: FrameTimes,
    ranks: NDArray[np.int64],
    failed: set[int],
) -> Iterator[VideoFrame | None]:
    """All frames, numbered in `pts`, and None at the end; packets that fail are noted."""
    import av

    assert times.keys is not None
    context = _decoder(container, film)
    context.thread_count = 1
    for index, packet in (*_packets(container, film), (-1, None)):
        if packet is not None and times.keys[index] < 0:
            continue
        number = -1 if packet is None else int(ranks[index])
        try:
            for frame in context.decode(None if packet is None else _numbered(packet, number)):
                if frame.pts is not None:
                    yield frame
        except av.FFmpegError:
            failed.add(index)
    yield None


def _by_count(
    file: BinaryIO, film: Film, wanted: NDArray[np.int64], tally: Tally
) -> Iterator[VideoFrame]:
    """Wanted frames of a stream without times, by their number as they come; fewer where there are fewer.

    Raises:
        ImageError: Damage before the last of them.
    """
    import av

    pending = wanted.tolist()
    begin = int(film.packets.key.argmax())
    with open_container(file, film.name) as container:
        context = _decoder(container, film)
        context.thread_type = "AUTO"
        packets = (packet for index, packet in _packets(container, film) if index >= begin)
        try:
            for frame in _decoded(context, packets):
                if tally.decoded == pending[0]:
                    yield frame
                    del pending[0]
                tally.decoded += 1
                if not pending:
                    return
        except av.FFmpegError as error:
            raise ImageError(
                f"{film.name} is damaged after frame {tally.decoded}: {error.strerror}; {DAMAGED}"
            ) from error


def _decoded(context: VideoCodecContext, packets: Iterator[Packet[Any]]) -> Iterator[VideoFrame]:
    """All frames of some packets."""
    for packet in packets:
        yield from context.decode(packet)
    yield from context.decode(None)


def _decoder(container: InputContainer, film: Film) -> VideoCodecContext:
    """The stream's decoder, not yet opened, which refuses what is damaged."""
    context = container.streams.video
    stream = next(one for one in context if one.index == film.stream)
    stream.codec_context.options = _STRICT
    return stream.codec_context


def _packets(container: InputContainer, film: Film) -> Iterator[tuple[int, Packet[Any]]]:
    """The stream's packets that hold data, numbered as `Film.packets` has them."""
    stream = next(one for one in container.streams.video if one.index == film.stream)
    held = (packet for packet in container.demux(stream) if packet.size)
    return enumerate(held)


def _ranks(film: Film, times: FrameTimes) -> NDArray[np.int64]:
    """Which frame each packet is, int64 [P]; -1 where none."""
    assert times.packets is not None
    ranks = np.full(len(film.packets.pts), -1, np.int64)
    ranks[times.packets] = np.arange(times.count)
    return ranks


def _numbered(packet: Packet[Any], number: int) -> Packet[Any]:
    """The packet with its frame's number in place of its times, so that the decoder hands it through."""
    packet.pts, packet.dts = (None if number < 0 else number), None
    return packet
