"""When each frame of a video is on the screen, from the times of its packets."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

NONE = int(np.iinfo(np.int64).min)
"""Stands for a time that a packet does not have."""

_FORWARD, _BACKWARD = Fraction(10), Fraction(1, 10)
"""Seconds by which a clock jumps; forward it does so only where the container's clock may restart."""
_MOST_KEYS_BACK = 8
"""Over how many keys a frame may be shown before what comes ahead of it in the file."""
_FINE = Fraction(1, 1000)
_USUAL_RATE = Fraction(25)
_DIVISORS = (1, 1001, *range(2, 1001))
"""Divisors of rates, the most usual first: 24 / 1, 30000 / 1001, 25 / 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packets:
    """What a stream's packets say, in the order of decoding.

    Attributes:
        pts: int64 [P], when a packet's frame is shown, in ticks; `NONE` where it is not said.
        dts: int64 [P], when it is decoded, likewise.
        duration: int64 [P], for how long it is shown; 0 where it is not said.
        key: bool [P], whether decoding can begin there.
        shown: bool [P], whether its frame is one of the film's.
        tick: Seconds.
        rates: Frames a second that the headers tell, the most trusted first.
        restarts: Whether the container is of a kind whose clock may restart, such as a transport stream.
    """

    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    duration: NDArray[np.int64]
    key: NDArray[np.bool_]
    shown: NDArray[np.bool_]
    tick: Fraction
    rates: tuple[Fraction, ...]
    restarts: bool

    def ticks(self, seconds: Fraction) -> int:
        """A time in whole ticks."""
        return int(seconds / self.tick)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTimes:
    """The frames of a film in the order in which they are shown; times count from the first.

    Attributes:
        count: How many there are.
        seconds: How long the film lasts, its last frame included.
        interval: Seconds from each frame to the next where they are evenly apart, else None.
        tick: Seconds.
        starts: int64 [count], when each begins, in ticks.
        packets: int64 [count], the packet of each; None where packets do not tell, so that frames
            are counted as the decoder gives them.
        keys: int64 [P], the packet from which each packet can be decoded, -1 where there is none; None
            likewise.
        jumps: How many times the clock jumped.
    """

    count: int
    seconds: Fraction
    interval: Fraction | None
    tick: Fraction
    starts: NDArray[np.int64]
    packets: NDArray[np.int64] | None = None
    keys: NDArray[np.int64] | None = None
    jumps: int = 0

    def on_screen(self, moment: Fraction) -> int:
        """The frame that is on the screen `moment` seconds after the first one began."""
        if self.interval is not None:
            place = int(moment // self.interval)
        else:
            # A clock of whole milliseconds puts a frame up to half of one beside its own time.
            slack = Fraction(1, 2) if self.tick <= _FINE else Fraction(0)
            latest = int((moment / self.tick + slack) // 1)
            place = int(np.searchsorted(self.starts, latest, "right")) - 1
        return max(0, min(place, self.count - 1))

    def start(self, frame: int) -> Fraction:
        """When a frame begins, in seconds after the first one."""
        if self.interval is not None:
            return frame * self.interval
        return int(self.starts[frame]) * self.tick


def frame_times(packets: Packets) -> FrameTimes | None:
    """Place a stream's frames in time.

    Presentation times decide. A clock that starts anew, or jumps where the container allows it, goes
    on where it stopped; a stream without such times goes by its decoding times, or else by its rate.

    Returns:
        The frames; None where there is none to decode.
    """
    if not len(packets.pts):
        return None
    if (packets.pts == NONE).any():
        return _counted(packets)
    part = np.cumsum(_jumps(packets), dtype=np.int64)
    keys = _keys(packets, part)
    index = np.flatnonzero(packets.shown & (keys >= 0))
    if not len(index):
        return None
    times = _continued(packets, index, part)
    order = index[np.lexsort((index, times))]
    starts, last = np.sort(times) - times.min(), int(packets.duration[order[-1]])
    count, seconds, interval = _lasting(packets, starts, last)
    return FrameTimes(
        count=count,
        seconds=seconds,
        interval=interval,
        tick=packets.tick,
        starts=starts,
        packets=order,
        keys=keys,
        jumps=int(part[-1]),
    )


def recounted(times: FrameTimes, count: int) -> FrameTimes:
    """The times of frames that are counted as they are decoded, when there are only `count` of them."""
    assert times.packets is None
    starts = times.starts[:count]
    if times.interval is not None:
        seconds = times.interval * count
    else:
        rest = times.starts[count] if count < times.count else times.seconds / times.tick
        seconds = Fraction(rest) * times.tick
    return FrameTimes(
        count=count, seconds=seconds, interval=times.interval, tick=times.tick, starts=starts
    )


def _counted(packets: Packets) -> FrameTimes | None:
    """Frames without presentation times: by decoding times, which are as far apart, or by the rate."""
    begin = int(packets.key.argmax())
    dts, lasting = packets.dts[begin:], packets.duration[begin:]
    if (dts != NONE).all() and (np.diff(dts) > 0).all():
        starts = dts - dts[0]
        count, seconds, interval = _lasting(packets, starts, int(lasting[-1]))
        return FrameTimes(
            count=count, seconds=seconds, interval=interval, tick=packets.tick, starts=starts
        )
    interval = 1 / (packets.rates[0] if packets.rates else _USUAL_RATE)
    count = len(dts)
    # Fields that stand in packets of their own last half a frame each.
    whole = float(int(lasting.sum()) * packets.tick / interval)
    if abs(whole - count / 2) < abs(whole - count) and whole > count / 4:
        count = (count + 1) // 2
    return FrameTimes(
        count=count,
        seconds=count * interval,
        interval=interval,
        tick=packets.tick,
        starts=np.arange(count, dtype=np.int64),
    )


def _jumps(packets: Packets) -> NDArray[np.bool_]:
    """Before which packets the clock jumped."""
    clock = packets.pts if (packets.dts == NONE).any() else packets.dts
    step, found = np.diff(clock), np.zeros(len(clock), np.bool_)
    reordered = _BACKWARD if clock is packets.dts else _FORWARD
    found[1:] = step < -packets.ticks(reordered)
    if packets.restarts:
        found[1:] |= step > packets.ticks(_FORWARD)
    return found


def _keys(packets: Packets, part: NDArray[np.int64]) -> NDArray[np.int64]:
    """The packet from which each packet's frame can be decoded, int64 [P]; -1 where there is none.

    That is the last key before it in its part of the clock, or, for a frame that is shown before that
    key though it comes after it, the key before that one.
    """
    key = packets.key if packets.key.any() else np.arange(len(packets.pts)) == 0
    numbers = np.arange(len(key))
    last: NDArray[np.int64] = np.maximum.accumulate(np.where(key, numbers, -1))
    before = np.concatenate([[-1], last[:-1]])
    keys: NDArray[np.int64] = last.copy()
    first = np.searchsorted(part, part)
    for place in range(_MOST_KEYS_BACK + 1):
        keys[keys < first] = -1
        late = (keys >= 0) & (packets.pts[keys] > packets.pts)
        if not late.any():
            break
        keys[late] = before[keys[late]] if place < _MOST_KEYS_BACK else -1
    return keys


def _continued(
    packets: Packets, index: NDArray[np.intp], part: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Presentation times of the packets `index`, each part of the clock after the one before it."""
    times, parts, dts = packets.pts[index], part[index], packets.dts[index]
    # The last frames before a jump may be given times after it.
    lost = (np.abs(times - dts) > packets.ticks(_FORWARD)) & (dts != NONE) & packets.restarts
    ends = 0
    for number, here in enumerate(
        np.split(np.arange(len(parts)), np.flatnonzero(np.diff(parts)) + 1)
    ):
        right, late = here[~lost[here]], here[lost[here]]
        if not len(right):
            right, late = here, late[:0]
        step = _usual(packets, times[right])
        times[late] = times[right].max() + step * np.arange(1, len(late) + 1)
        if number:
            times[here] += ends - times[here].min()
        ends = int(times[here].max()) + step
    return times


def _usual(packets: Packets, times: NDArray[np.int64]) -> int:
    """The usual distance of neighbouring times, in ticks."""
    apart = np.diff(np.sort(times))
    apart = apart[apart > 0]
    if len(apart):
        return int(np.median(apart))
    rate = packets.rates[0] if packets.rates else _USUAL_RATE
    return max(1, packets.ticks(1 / rate))


def _lasting(
    packets: Packets, starts: NDArray[np.int64], last: int
) -> tuple[int, Fraction, Fraction | None]:
    """How many frames, how long all last, and how far apart they are where that is even.

    Args:
        packets: The stream's.
        starts: int64 [count], ascending from 0.
        last: How long the last one lasts, in ticks; 0 where it is not said.
    """
    tick, count, usual = packets.tick, len(starts), _usual(packets, starts)
    if count == 1:
        lasting = (last or usual) * tick
        return 1, lasting, lasting
    interval = _interval(packets, starts)
    # A last frame that is said to be shorter than all others is a container's guess.
    if interval is None or last * tick > max(interval * 21 / 20, interval + 2 * tick):
        return count, (int(starts[-1]) + (last or usual)) * tick, None
    return count, count * interval, interval


def _interval(packets: Packets, starts: NDArray[np.int64]) -> Fraction | None:
    """Seconds between frames that are evenly apart but for the rounding of the clock, else None.

    Args:
        packets: The stream's.
        starts: int64 [count], at least two, ascending from 0.
    """
    numbers, tick = np.arange(1, len(starts)), packets.tick
    lowest = float(((starts[1:] - 1) / numbers).max() * tick)
    highest = float(((starts[1:] + 1) / numbers).min() * tick)
    if lowest > highest or not highest > 0:
        return None
    step = int(starts[1])
    if step and (starts == step * np.arange(len(starts))).all():
        return step * tick
    for rate in packets.rates:
        if lowest <= 1 / rate <= highest:
            return 1 / rate
    # The clock is rounded: the roundest rate that it allows for.
    for divisor in _DIVISORS:
        rate = Fraction(math.ceil(divisor / highest), divisor)
        if lowest <= 1 / rate:
            return 1 / rate
    return Fraction(int(starts[-1]), len(numbers)) * tick
