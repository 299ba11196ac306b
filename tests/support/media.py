"""Damage videos on purpose."""

from __future__ import annotations

import io

import av


def zero_payload(video: bytes) -> bytes:
    """Return a video whose container is whole and whose every frame is zeros."""
    data = bytearray(video)
    with av.open(io.BytesIO(video)) as container:
        for packet in container.demux(video=0):
            if packet.size:
                at = data.index(bytes(packet))
                data[at : at + packet.size] = bytes(packet.size)
    return bytes(data)
