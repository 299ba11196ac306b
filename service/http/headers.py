"""Read the headers by which a client negotiates, sets conditions and repeats a request safely.

Content-Type and Accept (RFC 9110), Prefer (RFC 7240), If-Match with entity tags (RFC 9110, 13.1.1: a change applies
only to the state that its sender knows) and Idempotency-Key (draft-ietf-httpapi-idempotency-key-header: the same key
with the same request gives the result of the first one; with another request it is an error).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Header, Request
from starlette.datastructures import Headers

from service.contract.durable_files import sha256_of
from service.contract.errors import BadRequest, PreconditionFailed, PreconditionRequired

from .problems import BadField

KEY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"
MAX_KEY_LENGTH = 255

_WEIGHT = re.compile(r";\s*q\s*=\s*(\d+(?:\.\d*)?)\s*(?:;|$)")
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


def media_type(headers: Mapping[str, str]) -> str:
    """Return the media type of a body in lower case, without parameters; empty if it has none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def responds_async(headers: Headers) -> bool:
    """Return whether the client asks for a response before the work is done (``Prefer: respond-async``)."""
    words = ",".join(headers.getlist("prefer")).lower().replace(";", ",").split(",")
    return any(word.strip() == "respond-async" for word in words)


def accepted_media_type(accept: str, offered: Sequence[str], default: str = "application/json") -> str | None:
    """Return the first of the `offered` media types in Accept, unless `default` has a higher weight there.

    Wildcards as ``*/*`` accept the default, so they match none. A malformed weight counts as 1.
    """
    weights: dict[str, float] = {}
    for item in accept.lower().split(","):
        weight = _WEIGHT.search(item)
        weights[item.partition(";")[0].strip()] = float(weight[1]) if weight else 1.0
    # a type of weight 0 is not acceptable
    least = max(weights.get(default, 0.0), 1e-9)
    return next((kind for kind in weights if kind in offered and weights[kind] >= least), None)


def etag(identity: str) -> str:
    """Return the entity tag of a state that `identity` distinguishes from all others."""
    return f'"{identity}"'


def json_etag(value: Any) -> str:
    """Return the entity tag of a JSON value."""
    return etag(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24])


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
                    f"{what} exists, and the request has no If-Match: send the ETag of the state that you have "
                    f"(it is {current} now), or * to replace any state"
                )
            return
        strong = [tag for weak, tag in _TAG.findall(if_match) if not weak]
        if current is None or (if_match.strip() != "*" and current not in strong):
            state = f"it is {current} now" if current else "it does not exist"
            raise PreconditionFailed(f"{what} does not match If-Match ({if_match[:200]}): {state}; get it again")

    return check


def idempotency_key(request: Request) -> str | None:
    """Return the key of a request; None if it has none.

    Raises:
        BadField: several keys, or not 1 to MAX_KEY_LENGTH visible ASCII characters.
    """
    keys = request.headers.getlist(KEY_HEADER)
    if not keys:
        return None
    key = keys[0].strip()
    if len(keys) > 1 or not 0 < len(key) <= MAX_KEY_LENGTH or not all("!" <= c <= "~" for c in key):
        raise BadField(
            KEY_HEADER,
            f"{KEY_HEADER} came {len(keys)} times, of {len(key)} characters; send it once, 1 to {MAX_KEY_LENGTH} "
            "visible ASCII characters, for example a UUID",
        )
    return key


IdempotencyKey = Annotated[
    str | None,
    Header(alias=KEY_HEADER, description="names the request, so that it can be sent again: 1 to 255 ASCII characters"),
]
"""Parameter of a route, for the API's document; :func:`idempotency_key` checks and returns it."""


def request_digest(request: Request, owner: str | None, content: str) -> str | None:
    """Return 64 hex digits that what a request creates is stored with, so that it is known when it is sent again.

    None without an Idempotency-Key. Raises BadField, as :func:`idempotency_key`.

    Args:
        owner: id of the sender's API key, if any.
        content: the request's :func:`fingerprint`.
    """
    key = idempotency_key(request)
    return key and hashlib.sha256(json.dumps([owner, key, content]).encode()).hexdigest()


def fingerprint(fields: dict[str, Any], files: Sequence[Path]) -> str:
    """Return 64 hex digits that identify a request by its JSON values and the bytes of its uploaded files.

    Raises:
        BadRequest: the values are nested too deeply.
    """
    try:
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    except RecursionError as error:  # the parser allows deeper nesting than the encoder
        raise BadRequest("the body nests values too deeply; send a document as the API describes it") from error
    for path in files:
        digest.update(f"\0{path.name}\0{sha256_of(path)}".encode())
    return digest.hexdigest()
