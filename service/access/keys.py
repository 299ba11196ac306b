"""API keys, stored below the data root as hashes.

A key is ``ppl_<id>_<secret>``. The id names its file and is safe to show. The secret is 256 random bits, so SHA-256 is
safe here; a password would need a slow hash.

Each key has a file ``keys/<id>.json``, replaced atomically: all gateways of a data root accept a new key at once and
refuse a revoked one within RELOAD_S; those of other machines that share an object store do both a second later. A
revoked key keeps its file, so that its id stays known.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, Field

from service.contract.durable_files import atomic_write, hold_lock
from service.contract.errors import StoreCorrupt, StoreUnavailable, UnknownKey
from service.contract.objects import Replaced
from service.contract.settings import CommonSettings
from service.contract.shared_folders import SharedFolders
from service.runtime.secrets import read_or_create

log = logging.getLogger(__name__)

RELOAD_S = 1.0
FIRST_KEY_FILE = "first-api-key"
MAX_NAME_LENGTH = 80
_TRIES = 20

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
        sha256: of the key's text; only in its file.
    """

    id: str = Field(description="the public part of the key", examples=["3f9c1a7be0d2"])
    name: str = Field(description="owner or purpose", examples=["lab"])
    scopes: list[Scope]
    created_at: AwareDatetime
    revoked_at: AwareDatetime | None = None
    sha256: str = Field(exclude=True, repr=False)

    def allows(self, scope: Scope) -> bool:
        """Return whether the key is valid for a scope; ``train`` includes ``read``."""
        return self.revoked_at is None and (scope in self.scopes or Scope.TRAIN in self.scopes)


class KeyStore:
    """The keys of a data root. Used keys stay in memory; each is read again once in RELOAD_S.

    Attributes:
        first_key_file: has the key of the first start in plain text; the operator removes it.
    """

    def __init__(self, data_root: Path, shared: SharedFolders | None = None) -> None:
        self._folder, self._shared = data_root / "keys", shared
        self.first_key_file = data_root / FIRST_KEY_FILE
        self._cached: dict[str, tuple[ApiKey | None, float]] = {}  # None if damaged, and when it was read

    @classmethod
    def open(cls, settings: CommonSettings) -> KeyStore:
        """Return the keys in PPL_STORE_URL, or those of the data root without it."""
        return cls(settings.data_root, SharedFolders.open(settings, "platform"))

    def follow(self) -> None:
        """Get the keys that were created and revoked on other machines. Raises StoreUnavailable."""
        if self._shared:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._shared.poll(self._folder.parent, (), None)

    def send(self) -> None:
        """Let other machines have the keys of this one. Raises StoreUnavailable."""
        for _ in range(_TRIES if self._shared else 0):
            assert self._shared
            try:
                self._shared.send("keys", self._folder)
                return
            except Replaced:  # another machine changed other keys; this one's changes stay
                self._shared.fetch("keys", self._folder)
        if self._shared:
            raise StoreUnavailable("the keys are changed by others all the time; try again in a moment")

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
        self.follow()
        found = []
        for path in self._folder.glob("*.json"):
            with suppress(UnknownKey):  # not a key, or removed meanwhile
                found.append(self._read(path.stem))
        return sorted(found, key=lambda key: (key.created_at, key.id))

    def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key. Idempotent.

        Raises:
            UnknownKey: no key has this id.
            StoreCorrupt: its file cannot be read.
            OSError: its file cannot be written.
        """
        self.follow()
        key = self._read(key_id)
        if key.revoked_at is None:
            key = key.model_copy(update={"revoked_at": datetime.now(UTC)})
            self._write(key)
        self.send()  # also if it could not be sent before
        return key

    def find(self, text: str) -> ApiKey | None:
        """Return the key with this text; None if it is unknown or revoked. Compares in constant time."""
        match = _KEY.fullmatch(text)
        key = self._get(match[1]) if match else None
        # takes the same time for an unknown id
        same = hmac.compare_digest(_digest(text), key.sha256 if key else _digest(""))
        return key if key and same and key.revoked_at is None else None

    def is_revoked(self, key_id: str) -> bool:
        """Return whether a key that was valid is so no more."""
        key = self._get(key_id)
        return key is None or key.revoked_at is not None

    def ensure_first(self) -> Path | None:
        """Create a key where there has never been one. Gateways that start concurrently create one together.

        Returns:
            The file with the key in plain text, readable by its owner only; None where keys were created before, also
            by another machine with the same object store, which then has the file.

        Raises:
            StoreCorrupt: the file of an earlier start contains no key.
            OSError: a file cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with hold_lock(self._folder / ".first.lock"):
            self.follow()
            # a damaged file counts too: it must not prevent a start with the other keys
            if any(_ID.fullmatch(path.stem) for path in self._folder.glob("*.json")):
                return None
            text = read_or_create(self.first_key_file, _generate)
            if not _KEY.fullmatch(text):
                raise StoreCorrupt(f"{self.first_key_file} contains no key; remove it, and the next start creates one")
            key = _new_key(text, "first", [Scope.TRAIN])
            self._write(key)
            return self.first_key_file if self._send_first(key) else None

    def _send_first(self, key: ApiKey) -> bool:
        """Send a first key; return False and forget it if another machine sent keys before."""
        if self._shared:
            try:
                self._shared.send("keys", self._folder)
            except Replaced:
                path = self._folder / f"{key.id}.json"
                path.unlink()
                self._cached.pop(key.id, None)
                self.follow()
                if not path.exists():  # else an answer was lost, and it was sent
                    self.first_key_file.unlink(missing_ok=True)
                    return False
        return True

    def _add(self, text: str, name: str, scopes: Iterable[Scope]) -> ApiKey:
        key = _new_key(text, name, scopes)
        self.follow()
        self._write(key)
        self.send()
        return key

    def _write(self, key: ApiKey) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stored = {**key.model_dump(mode="json"), "format": 1, "sha256": key.sha256}
        with atomic_write(self._folder / f"{key.id}.json", mode=0o600) as file:
            file.write(json.dumps(stored, indent=1).encode() + b"\n")
        self._cached.pop(key.id, None)

    def _get(self, key_id: str) -> ApiKey | None:
        """Return a key as it was at most RELOAD_S ago; None if it is unknown or damaged."""
        key, read_at = self._cached.get(key_id, (None, float("-inf")))
        if time.monotonic() - read_at > RELOAD_S:
            try:
                key = self._read(key_id)
            except UnknownKey:
                # not cached: a key is used as soon as it is created
                self._cached.pop(key_id, None)
                return None
            except StoreCorrupt as error:
                if key or key_id not in self._cached:  # log it once
                    log.error("requests with a key are refused: %s", error.detail)
                key = None
            self._cached[key_id] = key, time.monotonic()
        return key

    def _read(self, key_id: str) -> ApiKey:
        """Read a key. Raises UnknownKey, StoreCorrupt."""
        unknown = UnknownKey(f"there is no key {key_id[:80]!r}; `ppl keys list` shows the ids")
        if not _ID.fullmatch(key_id):
            raise unknown
        try:
            return ApiKey.model_validate_json((self._folder / f"{key_id}.json").read_bytes())
        except FileNotFoundError:
            raise unknown from None
        except (ValueError, OSError) as error:
            reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
            raise StoreCorrupt(
                f"the file of key {key_id} cannot be read{reason}; remove it, restore it, or give it to the user that "
                "the server runs as"
            ) from error


def _generate() -> str:
    return f"ppl_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def _new_key(text: str, name: str, scopes: Iterable[Scope]) -> ApiKey:
    name = name.strip()
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise ValueError(f"the name is {name[:100]!r}; it must have 1 to {MAX_NAME_LENGTH} printable characters")
    chosen = sorted(set(scopes))
    if not chosen:
        raise ValueError(f"the key has no scope; give it {' or '.join(Scope)}")
    return ApiKey(id=text.split("_")[1], name=name, scopes=chosen, created_at=datetime.now(UTC), sha256=_digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
