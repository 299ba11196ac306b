"""Entity tags and ``If-Match`` (RFC 9110, 13.1.1): a change applies only to the state that its sender knows."""

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
        description="the `ETag` that GET returned for what is to be changed; `*` for any state",
        examples=['"20261123T064501-1f3a9c"'],
    ),
]


def etag(identity: str) -> str:
    """Return the entity tag of a state that `identity` distinguishes from all others."""
    return f'"{identity}"'


def json_etag(value: Any) -> str:
    """Return the entity tag of a JSON value."""
    return etag(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24])


def etag_header(description: str) -> dict[str, Any]:
    """Declare the header ETag in the documentation of a response."""
    return {"ETag": {"description": description, "schema": {"type": "string"}}}


def precondition(if_match: str | None, what: str, *, required: bool = True) -> Callable[[str | None], None]:
    """Return a check of the current entity tag, None where the thing does not exist, to call while changing it.

    Args:
        if_match: the header of the request, if it has one.
        what: name of the thing in messages.
        required: whether a change of an existing thing needs the header.

    Raises:
        BadRequest: the header is not a list of entity tags.
        PreconditionFailed: (by the check) the header does not match the current state.
        PreconditionRequired: (by the check) the header is missing and the thing exists.
    """
    if if_match is not None and if_match.strip() != "*" and not _TAGS.fullmatch(if_match):
        raise BadRequest(f'If-Match is {if_match[:80]!r}; it must be * or entity tags in quotes, as in "abc"')

    def check(current: str | None) -> None:
        if if_match is None:
            if required and current is not None:
                raise PreconditionRequired(
                    f"{what} exists, and the request has no If-Match: send the ETag of the state that you know "
                    f"(it is {current} now), or * to replace any state"
                )
            return
        strong = [tag for weak, tag in _TAG.findall(if_match) if not weak]
        if current is None or (if_match.strip() != "*" and current not in strong):
            state = f"it is {current} now" if current else "it does not exist"
            raise PreconditionFailed(f"{what} does not match If-Match ({if_match[:200]}): {state}; get it again")

    return check
