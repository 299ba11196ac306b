"""``If-Match``: a change that counts only while the thing is as its sender knows it (RFC 9110, 13.1.1)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header

from service.contract.errors import BadRequest, PreconditionFailed, PreconditionRequired

_TAGS = re.compile(r'\s*(?:W/)?"[^"]*"\s*(?:,\s*(?:W/)?"[^"]*"\s*)*')
_TAG = re.compile(r'(W/)?("[^"]*")')

IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        max_length=1000,
        description="the `ETag` of what shall be changed, as GET gave it; `*` for whatever there is",
        examples=['"20261123T064501-1f3a9c"'],
    ),
]


def tag_of(text: str) -> str:
    """The entity tag of something that a word tells from all others."""
    return f'"{text}"'


def tag_of_json(value: Any) -> str:
    """The entity tag of a JSON value."""
    return tag_of(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24])


def expecting(header: str | None, what: str, *, needed: bool = True) -> Callable[[str | None], None]:
    """A check of the tag that a thing has at the moment of its change, None where there is no such thing.

    Args:
        header: the request's If-Match, if it has one.
        what: how messages name the thing.
        needed: whether a change of what exists must have the header.

    Raises:
        BadRequest: the header is no list of entity tags. And from the check:
        PreconditionFailed: it names other states than that of the thing.
        PreconditionRequired: it is missing, and the thing exists.
    """
    if header is not None and header.strip() != "*" and not _TAGS.fullmatch(header):
        raise BadRequest(f'If-Match is {header[:80]!r}; it must be * or entity tags in quotes, as in "abc"')

    def check(now: str | None) -> None:
        if header is None:
            if needed and now is not None:
                raise PreconditionRequired(
                    f"{what} exists, and the request has no If-Match: send the ETag of the state that you know "
                    f"(it is {now} now), or * to replace whatever there is"
                )
            return
        named = [tag for weak, tag in _TAG.findall(header) if not weak]
        if now is None or (header.strip() != "*" and now not in named):
            state = f"it is {now} now" if now else "there is none"
            raise PreconditionFailed(f"{what} is not as If-Match says ({header[:200]}): {state}; look at it again")

    return check
