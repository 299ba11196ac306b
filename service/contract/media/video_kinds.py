"""Identify videos by name and by their first bytes."""

from __future__ import annotations

import re
from pathlib import Path

_SUFFIXES = """
mp4 m4v f4v mov qt 3gp avi mkv webm ogv wmv asf flv ts mts m2ts mpg mpeg vob m1v m2v mxf dv nut ivf y4m rm
h264 264 h265 265 hevc
"""
SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
KINDS = "MP4, MOV, AVI, MKV, WebM, MPEG, TS, WMV or FLV"
EXPECTED = f"expected an {KINDS} video"
HEAD_BYTES = 200  # of a file's start, as many as :func:`is_video` needs

_STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # WMV, ASF
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02",  # MXF
    *(b"FLV\x01", b"OggS", b".RMF", b"nut/multimedia container", b"DKIF\0\0", b"YUV4MPEG2 ", b"\x1f\x07\0"),
)
# MPEG program streams; streams of MPEG-2, H.264 and HEVC without a container
_BARE = re.compile(rb"\0\0\0?\x01(?:[\xba\xb3\x09\x27\x47\x67]|[\x40\x42\x46]\x01)")
# first byte and length of a transport stream's packets; cameras' .mts have a time of four bytes before each
_SYNC, _PACKET_BYTES = b"G", 188
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_STILL_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")


def is_video_name(name: str) -> bool:
    """Return whether a file name has a supported video's suffix."""
    return Path(name).suffix.lower() in SUFFIXES


def is_video(head: bytes) -> bool:
    """Return whether a file's first HEAD_BYTES bytes are a video's, not an archive's or a picture's."""
    if head.startswith(_STARTS) or _BARE.match(head) or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    for first, length in ((0, _PACKET_BYTES), (4, _PACKET_BYTES + 4)):
        if head[first : first + 1] == head[first + length : first + length + 1] == _SYNC:
            return True
    # a tar starts with a member's name, so the first byte must not be text
    is_box = head[:1] < b"\x20" and head[4:8] in _BOXES
    return is_box and not (head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS)
