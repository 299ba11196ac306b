"""The secret that webhooks are signed with: given by a setting, or made once for a data root."""

from __future__ import annotations

import base64
import binascii
import secrets
from pathlib import Path

from service.runtime.secrets import read_or_make

from .contract.errors import StoreCorrupt

FILE_NAME = "webhook-secret"
_PREFIX = "whsec_"
_BYTES = 32


def check_secret(text: str) -> str:
    """The secret, if it is ``whsec_`` and the base64 of 24 to 64 bytes. Raises ValueError."""
    try:
        size = len(base64.b64decode(text.removeprefix(_PREFIX), validate=True)) if text.startswith(_PREFIX) else 0
    except binascii.Error:
        size = 0
    if not 24 <= size <= 64:
        raise ValueError("a webhook secret is whsec_ and the base64 of 24 to 64 random bytes")
    return text


def webhook_secret(data_root: Path, given: str | None) -> str:
    """The secret of a data root; made at the first call unless one is given.

    Raises:
        StoreCorrupt: the file holds none.
        OSError: it can't be read or written.
    """
    if given:
        return given
    path = data_root / FILE_NAME
    text = read_or_make(path, lambda: _PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode())
    try:
        return check_secret(text)
    except ValueError as error:
        raise StoreCorrupt(f"{FILE_NAME} holds no secret; remove it, and the next start makes one") from error
