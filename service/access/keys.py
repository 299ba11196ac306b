"""API keys: who may ask, and for what. Stored below the data root as hashes only.

A key is ``ppl_<id>_<secret>``. The id finds its file and is safe to show; the secret is 256 random bits, so a plain
SHA-256 of the key is as good as a slow hash would be for a password.

A file a key, ``keys/<id>.json``, replaced as a whole: all gateways of a data root see a new key at once, and that one
was revoked within RELOAD_S. A revoked key keeps its file, so that its id stays known and nothing brings it back.
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
from collections.abc import Callable, Iterable
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
MAX_NAME = 80

_SETTLED_NS = 2_000_000_000
_KEY = re.compile(r"ppl_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_ID = re.compile(r"[0-9a-f]{12}")


class Scope(StrEnum):
    """What a key may do."""

    READ = "read"
    TRAIN = "train"


class ApiKey(BaseModel):
    """A key, without its secret.

    Attributes:
        scopes: ``read``: estimate and look at everything; ``train``: also train, upload, change and delete.
        revoked_at: since when it opens nothing any more.
    """

    id: str = Field(description="the part of the key that finds it", examples=["3f9c1a7be0d2"])
    name: str = Field(description="whose it is, or what for", examples=["lab"])
    scopes: list[Scope]
    created_at: AwareDatetime
    revoked_at: AwareDatetime | None = None

    def may(self, scope: Scope) -> bool:
        """Whether it opens what needs the scope; who may train may read."""
        return self.revoked_at is None and (scope in self.scopes or Scope.TRAIN in self.scopes)


class _Stored(ApiKey):
    format: int = 1
    sha256: str


class KeyStore:
    """The keys of a data root. Safe to share between threads.

    A request costs a hash and a comparison: the folder is looked at once in RELOAD_S, and read where it changed.
    """

    def __init__(self, data_root: Path) -> None:
        self._folder = data_root / "keys"
        self._first = data_root / FIRST_KEY_FILE
        self._lock = threading.Lock()
        self._known: dict[str, _Stored] = {}
        self._looked_at = float("-inf")
        self._state: tuple[int, bool] | None = None
        self._damaged: set[str] = set()

    @property
    def first_key_file(self) -> Path:
        """Where the key of the first start stands in the clear, until its owner removes the file."""
        return self._first

    def create(self, name: str, scopes: Iterable[Scope]) -> tuple[ApiKey, str]:
        """A new key.

        Returns:
            The key, and its text, which can't be had again.

        Raises:
            ValueError: the name is empty, too long or not printable, or no scope is given.
            OSError: it can't be written.
        """
        text = _new_text()
        return self._put(text, name, scopes), text

    def keys(self) -> list[ApiKey]:
        """All keys, the revoked ones too, the oldest first. Raises StoreCorrupt, OSError."""
        return sorted((_public(key) for key in self._read().values()), key=lambda key: (key.created_at, key.id))

    def revoke(self, key_id: str) -> ApiKey:
        """Let a key open nothing any more; no harm where it is revoked already.

        Raises:
            UnknownKey.
            OSError: it can't be written.
        """
        key = self._read().get(key_id)
        if key is None:
            raise UnknownKey(f"no key {key_id[:80]!r}; `ppl keys list` shows the ids")
        if key.revoked_at is None:
            key = key.model_copy(update={"revoked_at": datetime.now(UTC)})
            self._write(key)
        return _public(key)

    def find(self, text: str) -> ApiKey | None:
        """The key of that text, None where there is none or it is revoked. Compares in constant time."""
        match = _KEY.fullmatch(text)
        key = self._known_or_new(match[1]) if match else None
        # the same work where the id is unknown
        same = hmac.compare_digest(_digest(text), key.sha256 if key else _digest(""))
        return _public(key) if key and same and key.revoked_at is None else None

    def ensure_first(self) -> Path | None:
        """Make a key at the first start, when there has never been one. Gateways that start together make one.

        Returns:
            The file that holds it in the clear, readable by its owner alone; None where keys were made before.

        Raises:
            OSError: it can't be written.
        """
        # one that is damaged was made too: that it can't be read must not keep the others from starting
        if any(_ID.fullmatch(path.stem) for path in self._folder.glob("*.json")):
            return None
        text = read_or_create(self._first, _new_text)
        if not _KEY.fullmatch(text):
            raise StoreCorrupt(f"{self._first} holds no key; remove it, and the next start makes one")
        self._put(text, "first", [Scope.TRAIN])
        return self._first

    def _put(self, text: str, name: str, scopes: Iterable[Scope]) -> ApiKey:
        name = name.strip()
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise ValueError(f"a key's name has 1 to {MAX_NAME} printable characters; {name[:100]!r} has not")
        chosen = sorted(set(scopes))
        if not chosen:
            raise ValueError(f"a key needs a scope: {' or '.join(Scope)}")
        match = _KEY.fullmatch(text)
        assert match
        key = _Stored(id=match[1], name=name, scopes=chosen, created_at=datetime.now(UTC), sha256=_digest(text))
        self._write(key)
        return _public(key)

    def _write(self, key: _Stored) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_write(self._folder / f"{key.id}.json", mode=0o600) as file:
            file.write(key.model_dump_json(indent=1).encode() + b"\n")
        self._looked_at = float("-inf")

    def _known_or_new(self, key_id: str) -> _Stored | None:
        """The key of an id, also where it was made a moment ago: it is used as soon as it is shown."""
        key = self._current().get(key_id)
        if key or key_id in self._damaged or not (self._folder / f"{key_id}.json").exists():
            return key
        with self._lock:
            self._looked_at, self._state = float("-inf"), None
        return self._current().get(key_id)

    def _current(self) -> dict[str, _Stored]:
        with self._lock:
            if time.monotonic() - self._looked_at > RELOAD_S:
                state = self._folder_state()
                # a change right after the last reading may have left the folder's time as it was
                if state is None or state != self._state or not state[1]:
                    damaged: set[str] = set()
                    self._known = self._read(damaged=damaged.add)
                    for key_id in damaged - self._damaged:
                        _log_damaged(key_id)
                    self._damaged = damaged
                    if damaged:
                        state = None  # looked at again: it may have been for a moment only
                self._state, self._looked_at = state, time.monotonic()
            return self._known

    def _folder_state(self) -> tuple[int, bool] | None:
        """When the folder last changed, and whether that is long ago."""
        try:
            changed = self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        return changed, time.time_ns() - changed > _SETTLED_NS

    def _read(self, damaged: Callable[[str], None] | None = None) -> dict[str, _Stored]:
        """All keys. Raises StoreCorrupt for a file that can't be read, unless somebody else is told of it."""
        found = {}
        for path in self._folder.glob("*.json"):
            if not _ID.fullmatch(path.stem):
                continue
            try:
                found[path.stem] = _Stored.model_validate(json.loads(path.read_bytes()))
            except FileNotFoundError:  # removed meanwhile
                continue
            except (ValidationError, ValueError, OSError) as error:
                if damaged is not None:
                    damaged(path.stem)
                    continue
                why = f" ({error.strerror})" if isinstance(error, OSError) else ""
                raise StoreCorrupt(
                    f"the file of key {path.stem} can't be read{why}; remove it, bring it back, or give it to the user "
                    "that the server runs as"
                ) from error
        return found


def _log_damaged(key_id: str) -> None:
    # the other keys open what they did before
    log.error(
        "the file of key %s can't be read, so it opens nothing; remove it, bring it back, or give it to the user that "
        "the gateway runs as",
        key_id,
    )


def _new_text() -> str:
    return f"ppl_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _public(key: _Stored) -> ApiKey:
    return ApiKey.model_validate(key.model_dump(exclude={"sha256", "format"}))
