"""``Idempotency-Key`` (draft-ietf-httpapi-idempotency-key-header): a request that can be sent again safely.

The same key with the same request gives the result of the first one; with another request it is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import Request

from service.contract.errors import BadRequest

from .problems import BadField

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"
MAX_LENGTH = 255


def idempotency_key(request: Request) -> str | None:
    """Return the key of a request; None where it has none.

    Raises:
        BadField: several keys, or not 1 to MAX_LENGTH visible ASCII characters.
    """
    keys = request.headers.getlist(HEADER)
    if not keys:
        return None
    key = keys[0].strip()
    if len(keys) > 1 or not 0 < len(key) <= MAX_LENGTH or not all("!" <= c <= "~" for c in key):
        raise BadField(
            HEADER,
            f"{HEADER} came {len(keys)} times, of {len(key)} characters; send it once, 1 to {MAX_LENGTH} visible "
            "ASCII characters, for example a UUID",
        )
    return key


def fingerprint(fields: dict[str, Any], files: Sequence[Path]) -> str:
    """Return 64 hex digits that identify a request by its JSON values and the bytes of its uploaded files.

    Raises:
        BadRequest: the values are nested too deeply.
    """
    try:
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    except RecursionError as error:  # the parser allows deeper nesting than the encoder
        raise BadRequest("the body nests values deeper than any request needs to") from error
    for path in files:
        with path.open("rb") as file:
            digest.update(f"\0{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()
