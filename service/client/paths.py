"""Names in the paths of the API."""

from __future__ import annotations

from urllib.parse import quote

from .errors import InputError

_NO_NAMES = ("", ".", "..")  # in a path they mean another one


def quoted(name: str) -> str:
    """A name as a part of a path. Raises InputError for what can't be one."""
    if name in _NO_NAMES:
        raise InputError(f"a name or an id was expected where {name!r} came")
    return quote(name, safe="")
