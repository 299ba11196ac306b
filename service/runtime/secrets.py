"""Secrets in files that only their owner may read, and the one that signs webhooks."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from service.contract.errors import StoreCorrupt
from service.contract.objects import Objects, Replaced
from service.contract.settings import CommonSettings

WEBHOOK_SECRET_FILE = "webhook-secret"  # noqa: S105 - a file's name
_SHARED_SECRET = "platform/webhook-secret"  # noqa: S105 - an object's name
_PREFIX = "whsec_"
_BYTES = 32


def write_private(path: Path, text: str) -> None:
    """Create a file of mode 0600, on disk when this returns. Raises FileExistsError, OSError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_or_create(path: Path, create: Callable[[], str]) -> str:
    """Return the text of a file, created first if missing. If processes race, one creates it and all read it."""
    with suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8").strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_private(draft, create() + "\n")
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    return path.read_text(encoding="utf-8").strip()


def check_webhook_secret(text: str) -> str:
    """Return the secret. Raises ValueError unless it is ``whsec_`` and the base64 of 24 to 64 bytes."""
    try:
        size = len(base64.b64decode(text.removeprefix(_PREFIX), validate=True)) if text.startswith(_PREFIX) else 0
    except binascii.Error:
        size = 0
    if not 24 <= size <= 64:
        raise ValueError("a webhook secret must be whsec_ and the base64 of 24 to 64 random bytes")
    return text


def webhook_secret(settings: CommonSettings, configured: str | None = None) -> str:
    """Return the configured secret, else that in PPL_STORE_URL or of the data root, created at the first call.

    An object store takes the secret of the data root if it has none.

    Raises:
        StoreCorrupt: the stored secret is not valid.
        StoreUnavailable.
        OSError: it can't be read or written.
    """
    if configured:
        return configured
    path = settings.data_root / WEBHOOK_SECRET_FILE
    if settings.store_url is None:
        return _check_stored(read_or_create(path, _generate_webhook_secret))
    objects = Objects(settings.store_url)
    while True:
        with suppress(FileNotFoundError):
            return _check_stored(objects.read(_SHARED_SECRET)[0].decode())
        text = path.read_text(encoding="utf-8").strip() if path.exists() else _generate_webhook_secret()
        with suppress(Replaced):  # another machine created it at the same moment
            objects.replace(_SHARED_SECRET, _check_stored(text).encode(), None)


def has_webhook_secret(settings: CommonSettings) -> bool:
    """Return whether a secret is stored. Raises StoreUnavailable."""
    if settings.store_url is None:
        return (settings.data_root / WEBHOOK_SECRET_FILE).exists()
    with suppress(FileNotFoundError):
        return bool(Objects(settings.store_url).read(_SHARED_SECRET))
    return False


def _generate_webhook_secret() -> str:
    return _PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def _check_stored(text: str) -> str:
    try:
        return check_webhook_secret(text)
    except ValueError as error:
        raise StoreCorrupt(
            f"{WEBHOOK_SECRET_FILE} holds no valid secret; remove it, and the next start creates one"
        ) from error
