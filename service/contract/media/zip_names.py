"""Decode the names of files in an upload: in a zip, half a dozen programs have their own habit."""

from __future__ import annotations

import struct
import zipfile
import zlib
from contextlib import suppress

_UTF8 = 0x800  # flag: the name is in UTF-8
_UNICODE_NAME = 0x7075  # Info-ZIP's field with the name in UTF-8 and the checksum of the plain one

# for names that match nothing: they do not say which code page was used
HINT = (
    "names beyond ASCII in a zip are read as UTF-8, else as Windows' code page 437; if they are garbled, pack the "
    "files again with UTF-8 names (7-Zip: -mcu=on)"
)


def decode_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name: Info-ZIP's field, else UTF-8, which Finder writes without its flag, else cp437."""
    if info.flag_bits & _UTF8:
        return info.orig_filename
    written = info.orig_filename.encode("cp437")
    extra = info.extra
    with suppress(UnicodeDecodeError, struct.error):
        while extra:
            kind, size = struct.unpack_from("<HH", extra)
            # a tool that does not know the field leaves it as it is when it renames the member
            if kind == _UNICODE_NAME and extra[4:9] == struct.pack("<BI", 1, zlib.crc32(written)):
                return extra[9 : 4 + size].decode()
            extra = extra[4 + size :]
    try:
        return written.decode()
    except UnicodeDecodeError:
        return info.orig_filename


def replace_surrogates(name: str) -> str:
    """Return a name that JSON can carry: names in a tar or a folder may hold bytes that are not text."""
    return name.encode("utf-8", "replace").decode("utf-8")
