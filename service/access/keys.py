"""API keys, stored below the data root as hashes.

A key is ``ppl_<id>_<secret>``. The id names its file and is safe to show. The secret is 256 random bits, so SHA-256 is
safe here; a password would need a slow hash.

Each key has a file ``keys/<id>.json``, replaced atomically: all gateways of a data root accept a new key at once and
refuse a revoked one within RELOAD_S. A revoked key keeps its file, so that its id stays known.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from service.contract.durable_files import atomic_write
from service.contract.errors import StoreCorrupt, UnknownKey
from service.runtime.secrets import read_or_create

log = logging.getLogger(__name__)

RELOAD_S = 1.0
FIRST_KEY_FILE = "first-api-key"
MAX_NAME_LENGTH = 80

_SETTLED_NS = 2_000_000_000
_KEY = re.compile(r"ppl_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_ID = re.compile(r"[0-9a-f]{12}")


class Scope(StrEnum):
    """A permission of an API key."""

    READ = "read"
    TRAIN = "train"


class ApiKey(BaseModel):
    """A key, without its secret.

    Attributes:
        scopes: ``read``: estimate, and read everything; ``train``: also train, upload, change and delete.
    """

    id: str = Field(description="the public part of the key", examples=["3f9c1a7be0d2"])
    name: str = Field(description="owner or purpose", examples=["lab"])
    scopes: list[Scope]
    created_at: AwareDatetime
    revoked_at: AwareDatetime | None = None

    def allows(self, scope: Scope) -> bool:
        """Return whether the key is valid for a scope; ``train`` includes ``read``."""
        return self.revoked_at is None and (scope in self.scopes or Scope.TRAIN in self.scopes)


class _StoredKey(ApiKey):
    format: int = 1
    sha256: str

    def to_public(self) -> ApiKey:
        return ApiKey.model_validate(self.model_dump(exclude={"sha256", "format"}))


class KeyStore:
    """The keys of a data root. Thread-safe.

    Keeps all keys in memory, and reads them again where the folder changed; it looks once in RELOAD_S.
    """

    def __init__(self, data_root: Path) -> None:
        self._folder = data_root / "keys"
        self._first = data_root / FIRST_KEY_FILE
        self._lock = threading.Lock()
        self._cached: dict[str, _StoredKey] = {}
        self._checked_at = float("-inf")
        self._state: tuple[int, bool] | None = None
        self._damaged: set[str] = set()

    @property
    def first_key_file(self) -> Path:
        """Path of the key of the first start in plain text; the operator removes it."""
        return self._first

    def create(self, name: str, scopes: Iterable[Scope]) -> tuple[ApiKey, str]:
        """Create a key.

        Returns:
            The key, and its text, which is not stored.

        Raises:
            ValueError: the name is empty, too long or not printable, or no scope is given.
            OSError: the file cannot be written.
        """
        text = _generate()
        return self._add(text, name, scopes), text

    def keys(self) -> list[ApiKey]:
        """Return all keys, also revoked ones, oldest first. Raises StoreCorrupt, OSError."""
        stored = self._read_all().values()
        return sorted((key.to_public() for key in stored), key=lambda key: (key.created_at, key.id))

    def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key. Idempotent.

        Raises:
            UnknownKey: no key has this id.
            StoreCorrupt: a file cannot be read.
            OSError: the file cannot be written.
        """
        key = self._read_all().get(key_id)
        if key is None:
            raise UnknownKey(f"there is no key {key_id[:80]!r}; `ppl keys list` shows the ids")
        if key.revoked_at is None:
            key = key.model_copy(update={"revoked_at": datetime.now(UTC)})
            self._write(key)
        return key.to_public()

    def find(self, text: str) -> ApiKey | None:
        """Return the key with this text; None where it is unknown or revoked. Compares in constant time."""
        match = _KEY.fullmatch(text)
        key = self._get(match[1]) if match else None
        # takes the same time for an unknown id
        same = hmac.compare_digest(_digest(text), key.sha256 if key else _digest(""))
        return key.to_public() if key and same and key.revoked_at is None else None

    def ensure_first(self) -> Path | None:
        """Create a key where there has never been one. Gateways that start concurrently create one together.

        Returns:
            The file with the key in plain text, readable by its owner only; None where keys were created before.

        Raises:
            StoreCorrupt: the file of an earlier start contains no key.
            OSError: a file cannot be written.
        """
        # a damaged file counts too: it must not prevent a start with the other keys
        if any(_ID.fullmatch(path.stem) for path in self._folder.glob("*.json")):
            return None
        text = read_or_create(self._first, _generate)
        if not _KEY.fullmatch(text):
            raise StoreCorrupt(f"{self._first} contains no key; remove it, and the next start creates one")
        self._add(text, "first", [Scope.TRAIN])
        return self._first

    def _add(self, text: str, name: str, scopes: Iterable[Scope]) -> ApiKey:
        name = name.strip()
        if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
            raise ValueError(f"the name is {name[:100]!r}; it must have 1 to {MAX_NAME_LENGTH} printable characters")
        chosen = sorted(set(scopes))
        if not chosen:
            raise ValueError(f"the key has no scope; give it {' or '.join(Scope)}")
        match = _KEY.fullmatch(text)
        assert match
        key = _StoredKey(id=match[1], name=name, scopes=chosen, created_at=datetime.now(UTC), sha256=_digest(text))
        self._write(key)
        return key.to_public()

    def _write(self, key: _StoredKey) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_write(self._folder / f"{key.id}.json", mode=0o600) as file:
            file.write(key.model_dump_json(indent=1).encode() + b"\n")
        self._checked_at = float("-inf")

    def _get(self, key_id: str) -> _StoredKey | None:
        key = self._current().get(key_id)
        if key or key_id in self._damaged or not (self._folder / f"{key_id}.json").exists():
            return key
        # created since the last check: a key is used as soon as it is shown
        with self._lock:
            self._checked_at, self._state = float("-inf"), None
        return self._current().get(key_id)

    def _current(self) -> dict[str, _StoredKey]:
        with self._lock:
            if time.monotonic() - self._checked_at > RELOAD_S:
                state = self._folder_state()
                # a change right after the last read may have left the folder's mtime as it was
                if state is None or state != self._state or not state[1]:
                    self._cached, damaged = self._read()
                    for key_id in damaged.keys() - self._damaged:
                        log.error(
                            "the file of key %s cannot be read, so requests with it are refused; remove it, restore "
                            "it, or give it to the user that the gateway runs as",
                            key_id,
                        )
                    self._damaged = set(damaged)
                    if damaged:
                        state = None  # try again: the damage may be temporary
                self._state, self._checked_at = state, time.monotonic()
            return self._cached

    def _folder_state(self) -> tuple[int, bool] | None:
        """Return the folder's mtime and whether it is long ago."""
        try:
            changed = self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        return changed, time.time_ns() - changed > _SETTLED_NS

    def _read_all(self) -> dict[str, _StoredKey]:
        found, damaged = self._read()
        for key_id, error in damaged.items():
            reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
            raise StoreCorrupt(
                f"the file of key {key_id} cannot be read{reason}; remove it, restore it, or give it to the user that "
                "the server runs as"
            ) from error
        return found

    def _read(self) -> tuple[dict[str, _StoredKey], dict[str, Exception]]:
        """Return all keys by id, and the errors of files that cannot be read."""
        found, damaged = {}, dict[str, Exception]()
        for path in self._folder.glob("*.json"):
            if not _ID.fullmatch(path.stem):
                continue
            try:
                found[path.stem] = _StoredKey.model_validate(json.loads(path.read_bytes()))
            except FileNotFoundError:  # removed meanwhile
                continue
            except (ValidationError, ValueError, OSError) as error:
                damaged[path.stem] = error
        return found, damaged


def _generate() -> str:
    return f"ppl_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
