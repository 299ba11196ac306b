"""Paths of the API."""

from __future__ import annotations

from urllib.parse import quote

from .errors import InputError


def quote_segment(name: str) -> str:
    """Return a name or id as one segment of a path. Raises InputError for names that would change the path."""
    if name in ("", ".", ".."):
        raise InputError(f"the name or id is {name!r}; it must not be empty, '.' or '..'")
    return quote(name, safe="")


def prior_path(category: str) -> str:
    """Return the path of a category's prior."""
    return f"/priors/{quote_segment(category)}"
