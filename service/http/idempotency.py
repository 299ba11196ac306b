"""A request that its sender names by an Idempotency-Key, so that it can be sent again where the answer was lost.

After the draft of the IETF (draft-ietf-httpapi-idempotency-key-header): the same key with the same request gives what
the first one made, with another request an error.
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
REPLAYED = "Idempotent-Replayed"
LONGEST = 255


def key_of(request: Request) -> str | None:
    """The key of a request; None where it has none.

    Raises:
        BadField: several, or none of 1 to LONGEST visible characters of ASCII.
    """
    keys = request.headers.getlist(HEADER)
    if not keys:
        return None
    key = keys[0].strip()
    if len(keys) > 1 or not 0 < len(key) <= LONGEST or not all("!" <= c <= "~" for c in key):
        raise BadField(
            HEADER,
            f"{HEADER} came {len(keys)} times, of {len(key)} characters; send it once, 1 to {LONGEST} visible ASCII "
            "characters, say a UUID",
        )
    return key


def fingerprint(asked: dict[str, Any], files: Sequence[Path]) -> str:
    """What a request asks for in 64 hex digits: its values, and the bytes of its files.

    Args:
        asked: JSON values.
        files: those that came with it, on disk.

    Raises:
        BadRequest: values nested too deeply.
    """
    try:
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    except RecursionError as error:  # read by a parser that goes deeper than the writer
        raise BadRequest("the body nests values deeper than any request needs to") from error
    for path in files:
        with path.open("rb") as file:
            digest.update(f"\0{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()
