"""Named bytes in an object store (S3, GCS, Azure or a folder), through obstore.

Credentials come from the environment as the clouds' own tools read it, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .durable_files import atomic_write, hold_lock
from .errors import StoreCorrupt, StoreUnavailable

log = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0
_CLOCK = "platform/clock"
# an endpoint with http:// is its owner's choice
_CLIENT: dict[str, Any] = {
    "connect_timeout": timedelta(seconds=5),
    "timeout": timedelta(seconds=60),
    "allow_http": True,
}
_RETRIES: dict[str, Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}


class Replaced(Exception):  # noqa: N818 - an outcome that callers expect
    """Another process replaced the object after it was read."""


class Objects:
    """The objects below one URL. Thread-safe.

    Methods raise FileNotFoundError for objects that do not exist, and StoreUnavailable if the store can't be reached
    or refuses the request.
    """

    def __init__(self, url: str) -> None:
        """Open a store; does not reach it yet. Raises ValueError for an unknown kind of URL."""
        try:
            import obstore
            from obstore import exceptions
            from obstore.store import LocalStore, from_url
        except ImportError as error:
            raise ValueError("PPL_STORE_URL needs obstore: pip install 'pose-prior-learner[store]'") from error
        self._obstore, self._errors = obstore, exceptions
        self.key = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
        self._logged_at = -_LOG_EVERY_S
        self._folder = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
        if self._folder:
            self._store: Any = LocalStore(self._folder, mkdir=True)
        else:
            try:
                self._store = from_url(url, client_options=_CLIENT, retry_config=_RETRIES)  # type: ignore[call-overload]
            except exceptions.BaseError as error:
                raise ValueError(f"PPL_STORE_URL can't be opened: {_first_line(error)}") from error

    def read(self, name: str) -> tuple[bytes, Any]:
        """Return an object's bytes, and its tag for :meth:`replace`."""
        with self._reaching():
            found = self._obstore.get(self._store, name)
            return bytes(found.bytes()), _tag(found.meta)

    def replace(self, name: str, data: bytes, tag: Any) -> Any:
        """Replace an object if its tag is still the given one; None creates it. Return the new tag.

        Raises Replaced if it has another tag by now, or exists already.
        """
        mode: Any = "create" if tag is None else {key: value for key, value in tag.items() if value is not None}
        try:
            with self._reaching():
                if self._folder and tag is not None:  # obstore has no conditional replacement in folders
                    with hold_lock(self._folder / ".lock"):
                        if _tag(self._obstore.head(self._store, name)) != tag:
                            raise Replaced(name)
                        return _tag(self._obstore.put(self._store, name, data))
                return _tag(self._obstore.put(self._store, name, data, mode=mode, use_multipart=False))
        except (self._errors.AlreadyExistsError, self._errors.PreconditionError, FileNotFoundError) as error:
            raise Replaced(name) from error

    def upload(self, name: str, content: Path | bytes) -> None:
        """Store bytes or a file."""
        with self._reaching():
            self._obstore.put(self._store, name, content)

    def download(self, name: str, path: Path, sha256: str) -> None:
        """Write an object to a file, atomically. Raises StoreCorrupt if it has another SHA-256."""
        digest = hashlib.sha256()
        with self._reaching(), atomic_write(path) as file:
            for chunk in self._obstore.get(self._store, name).stream(min_chunk_size=2**20):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != sha256:
                raise StoreCorrupt(
                    f"{Path(name).name} in the object store does not match its SHA-256; publish or upload it again"
                )

    def scan(self, prefix: str) -> Iterator[tuple[str, Any, float]]:
        """Yield name, tag and time of the last change (seconds since 1970) of each object below a prefix."""
        with self._reaching():
            for batch in self._obstore.list(self._store, prefix, chunk_size=1000):
                for meta in batch:
                    yield meta["path"], _tag(meta), meta["last_modified"].timestamp()

    def time(self) -> float:
        """Return the time of the store's clock, in seconds since 1970, by which it dates objects."""
        with self._reaching():
            self._obstore.put(self._store, _CLOCK, b"")
            changed_at: float = self._obstore.head(self._store, _CLOCK)["last_modified"].timestamp()
            return changed_at

    def delete(self, names: list[str]) -> None:
        """Delete objects. Idempotent."""
        with self._reaching():
            if not self._folder:
                self._obstore.delete(self._store, names)
                return
            for name in names:
                with suppress(FileNotFoundError):  # only folders say so
                    self._obstore.delete(self._store, name)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
            raise
        except self._errors.BaseError as error:
            if time.monotonic() - self._logged_at > _LOG_EVERY_S:  # for its address, which clients must not see
                self._logged_at = time.monotonic()
                log.warning("the object store does not answer as expected: %s", _first_line(error))
            raise StoreUnavailable("the object store can't be reached or refuses; try again in a moment") from error


def _tag(meta: Any) -> dict[str, str | None]:
    return {"e_tag": meta["e_tag"], "version": meta["version"]}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
