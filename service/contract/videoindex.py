"""A video's packets walked without decoding: how many frames there are, and which of them to take."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import av
from av.packet import Packet

from service.contract.media.videos import Order
from service.contract.videofile import Unusable, opened, said, stream_of

_MICROSECOND = 1e-6
_SHORT_S = 0.5  # a file may be so much shorter than it says, or a tenth of its length


@dataclass
class Index:
    """What a walk over a video's packets found, without decoding.

    Attributes:
        times: of every frame that is shown, in its stream's units, in order; empty where the file has none.
        count: frames that are shown.
        keys: place among the packets, and number as shown, of the frames that need no other to be decoded.
        damage: why the walk ended early; empty where it did not.
    """

    times: array[int] = field(default_factory=lambda: array("q"))
    count: int = 0
    keys: list[tuple[int, int]] = field(default_factory=list)
    damage: str = ""


def evenly(count: int, total: int) -> list[int]:
    """``count`` of the numbers below ``total``, each in the middle of its part; all where there are no more."""
    if total <= count:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def index_of(order: Order) -> Index:
    """Walk a video's packets.

    Raises:
        Unusable: it can't be opened, or lasts longer than the limit.
    """
    index = Index()
    walk = _Walk(index)
    with opened(order) as container:
        stream = stream_of(container, order)
        length_s = (container.duration or 0) * _MICROSECOND
        start_s = (container.start_time or 0) * _MICROSECOND
        promised = stream.frames
        _check_duration(length_s, order)
        try:
            for packet in container.demux():
                if packet.is_corrupt:
                    index.damage = "the file is damaged or ends early"
                    break
                walk.end_s = max(walk.end_s, _end_s(packet) - start_s)
                _check_duration(walk.end_s, order)
                if packet.stream is stream and packet.size:
                    walk.take(packet)
        except av.FFmpegError as error:
            index.damage = f"the file is damaged ({said(error)})"
    walk.finish()
    # an AVI counts the frames that were dropped while it was taken as well: they lack in the middle of it
    lacks = walk.packets < promised and walk.end_s < length_s * (1 - 0.5 / promised)
    if not index.damage and (lacks or walk.end_s < length_s - max(_SHORT_S, length_s / 10)):
        index.damage = f"the file ends early: it holds {walk.end_s:.3g} of {length_s:.3g} seconds"
    return index


class _Walk:
    """Fills an index packet by packet."""

    def __init__(self, index: Index) -> None:
        self.packets = 0
        self.end_s = 0.0
        self._index = index
        self._timed = True
        self._keys: list[tuple[int, int | None]] = []

    def take(self, packet: Packet[Any]) -> None:
        """One packet of the stream that is decoded."""
        at, time = self.packets, packet.pts
        self.packets += 1
        if packet.is_discard:  # the file says not to show it
            return
        self._index.count += 1
        if packet.is_keyframe:
            self._keys.append((at, time))
        if time is None:
            self._timed = False
        else:
            self._index.times.append(time)

    def finish(self) -> None:
        """Number what was found in the order of showing; where a time is missing, in the order of the file."""
        index = self._index
        index.times = array("q", sorted(index.times) if self._timed else ())
        for at, time in self._keys:
            index.keys.append((at, at if time is None or not self._timed else bisect_left(index.times, time)))


def _end_s(packet: Packet[Any]) -> float:
    if packet.pts is None or packet.time_base is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _check_duration(length_s: float, order: Order) -> None:
    if length_s > order.max_duration_s:
        raise Unusable(f"it lasts {length_s:.0f} seconds; at most {order.max_duration_s:.0f} are read")


def nearest(picks: list[int], keys: list[tuple[int, int]]) -> dict[int, int]:
    """For each pick the key frame nearest to it, as place among the packets: number. Raises Unusable for none."""
    numbers = sorted((number, at) for at, number in keys)
    if not numbers:
        raise Unusable("it is too long to be decoded as a whole, and has no key frames")
    chosen = {}
    for pick in picks:
        after = bisect_left(numbers, (pick, -1))
        number, at = min(numbers[max(0, after - 1) : after + 1], key=lambda key: abs(key[0] - pick))
        chosen[at] = number
    return chosen
