"""Name videos of containers that are not read, by their first bytes, and say what to do with them."""

from __future__ import annotations

HEAD_BYTES = 200

_STARTS = (
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media video (WMV, ASF)"),
    (b"\x00\x00\x01\xba", "MPEG video (MPG, VOB)"),
    (b"\x00\x00\x01\xb3", "MPEG video (MPG)"),
    (b"FLV\x01", "Flash video (FLV)"),
    (b"OggS", "Ogg file"),
    (b"YUV4MPEG2", "YUV4MPEG2 video"),
    (b".RMF", "RealMedia video"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", "MXF video"),
    (b"\x00\x00\x00\x01\x67", "bare H.264 stream"),
    (b"\x00\x00\x00\x01\x40\x01", "bare HEVC stream"),
)
_SYNC = b"G"  # of each packet of 188 bytes, before which a camera's .mts has four bytes of time
_PACKET_BYTES = 188


def describe_other_video(head: bytes) -> str | None:
    """Return an error message if a file's first HEAD_BYTES bytes are those of a video that is not read, else None."""
    kind = next((name for start, name in _STARTS if head.startswith(start)), None)
    for first, length in ((0, _PACKET_BYTES), (4, _PACKET_BYTES + 4)):
        if head[first : first + 1] == head[first + length : first + length + 1] == _SYNC:
            kind = "MPEG transport stream (TS, MTS)"
    if kind is None:
        return None
    return (
        f"the file is a video of a kind that is not read ({kind}); expected MP4, MOV, AVI, MKV or WebM: convert it, "
        "for example with ffmpeg -i FILE out.mp4"
    )
