"""Folders in an object store, each worked on by one process at a time, with copies on the machines that do.

<kind>/<name>/files.json    the files of the folder; replaced only as it was read
<kind>/<name>/<sha256>      the content of one of them
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json

from .durable_files import atomic_write, hold_lock, sha256_of
from .errors import StoreCorrupt
from .objects import Objects
from .settings import CommonSettings

_LISTING, _COPIED, _LOCK = "files.json", ".copied.json", ".copied.lock"
_AT_ONCE = 16  # files in transfer: each waits for the network, mostly


class _Listing(BaseModel):
    """SHA-256 of the files by their paths in the folder."""

    files: dict[str, str] = Field(default_factory=dict)


class _Copied(_Listing):
    """The listing that a copy was last equal to, its tag, and size and time of each file then."""

    tag: dict[str, str | None] | None = None
    seen: dict[str, tuple[int, int]] = Field(default_factory=dict)


class SharedFolders:
    """Folders of one kind, such as jobs. Methods raise StoreUnavailable.

    Hidden files stay on their machine.

    Args:
        private: names of further files that do.
    """

    def __init__(self, objects: Objects, kind: str, private: Collection[str] = ()) -> None:
        self._objects, self._kind, self._private = objects, kind, private

    @classmethod
    def open(cls, settings: CommonSettings, kind: str) -> SharedFolders | None:
        """Return the folders in PPL_STORE_URL; None without it."""
        return None if settings.store_url is None else cls(Objects(settings.store_url), kind)

    def send(self, name: str, folder: Path) -> None:
        """Make the store's folder equal to the copy. Raises Replaced if another machine changed it since."""
        with hold_lock(folder / _LOCK):
            copied, now = _read_copied(folder), _Copied()
            # files that are not here are still there
            now.files = {file: digest for file, digest in copied.files.items() if file not in copied.seen}
            for path in _visible_files(folder):
                if path.name in self._private:
                    continue
                file, status = path.relative_to(folder).as_posix(), path.stat()
                now.seen[file] = status.st_size, status.st_mtime_ns
                unchanged = copied.seen.get(file) == now.seen[file]
                now.files[file] = copied.files[file] if unchanged else sha256_of(path)
            if copied.tag is not None and now.files == copied.files:
                return
            digests, before = set(now.files.values()), set(copied.files.values())
            new = {now.files[file]: folder / file for file in now.seen if now.files[file] not in before}
            _at_once(lambda item: self._objects.upload(self._path(name, item[0]), item[1]), new.items())
            listing = to_json(_Listing(files=now.files))
            now.tag = self._objects.replace(self._path(name, _LISTING), listing, copied.tag)
            _write_copied(folder, now)
        self._objects.delete([self._path(name, digest) for digest in before - digests])

    def fetch(self, name: str, folder: Path, only: Sequence[str] | None = None) -> bool:
        """Make the copy equal to the store's folder if another machine changed that; return whether there is one.

        Args:
            only: names of the files to have here; the others come when they are fetched.
        """
        try:
            self._read_listing(name)
        except FileNotFoundError:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder / _LOCK):
            try:
                listing, tag = self._read_listing(name)
            except FileNotFoundError:
                return False
            copied, now = _read_copied(folder), _Copied(files=listing.files, tag=tag)
            missing = []
            for file, digest in listing.files.items():
                path = folder / _safe(file)
                # with the same tag, what changed here since is newer
                is_here = file in copied.seen and (copied.tag == tag or copied.files[file] == digest)
                if is_here:
                    now.seen[file] = copied.seen[file]
                elif only is None or file in only:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    missing.append(file)
                else:
                    path.unlink(missing_ok=True)
            equal: dict[str, list[Path]] = defaultdict(list)
            for file in missing:
                equal[listing.files[file]].append(folder / file)
            _at_once(lambda item: self._download(name, item[0], item[1]), equal.items())
            for file in missing:
                status = (folder / file).stat()
                now.seen[file] = status.st_size, status.st_mtime_ns
            for file in copied.seen.keys() - listing.files.keys():
                (folder / _safe(file)).unlink(missing_ok=True)
            _write_copied(folder, now)
        return True

    def is_copy(self, folder: Path) -> bool:
        """Return whether a folder was sent or fetched."""
        return (folder / _COPIED).exists()

    def poll(self, root: Path, names: Collection[str], only: Sequence[str] | None) -> None:
        """Let the copies below a folder follow the store, with these or all files; remove those whose folder is gone.

        Args:
            names: the copies that are there.
        """
        listings = {
            path.split("/")[1]: tag for path, tag, _ in self._objects.scan(self._kind) if path.endswith(_LISTING)
        }
        for name, tag in listings.items():
            if _read_copied(root / name).tag != tag:
                self.fetch(name, root / name, only)
        for name in names:
            if name not in listings and _read_copied(root / name).tag is not None:
                shutil.rmtree(root / name, ignore_errors=True)

    def read(self, name: str, file: str) -> bytes:
        """Return the content of a file as it was last sent. Raises FileNotFoundError."""
        listing, _ = self._read_listing(name)
        if file not in listing.files:
            raise FileNotFoundError(file)
        return self._objects.read(self._path(name, listing.files[file]))[0]

    def remove(self, name: str) -> None:
        """Remove a folder from the store, its listing first. Idempotent."""
        self._objects.delete([self._path(name, _LISTING)])
        self._objects.delete([path for path, _, _ in self._objects.scan(self._path(name, ""))])

    def seconds_since_change(self) -> dict[str, float]:
        """Return how long ago every folder changed, by the object store's clock."""
        times: dict[str, float] = defaultdict(float)
        for path, _, changed_at in self._objects.scan(self._kind):
            name = path.split("/")[1]
            times[name] = max(times[name], changed_at)
        now = self._objects.time() if times else 0.0
        return {name: now - changed_at for name, changed_at in times.items()}

    def _download(self, name: str, digest: str, paths: Sequence[Path]) -> None:
        first, *others = paths
        try:
            self._objects.download(self._path(name, digest), first, digest)
        except FileNotFoundError as error:
            raise StoreCorrupt(f"the object store lacks {first.name} of {name}") from error
        for path in others:
            with atomic_write(path) as file, first.open("rb") as source:
                shutil.copyfileobj(source, file)

    def _read_listing(self, name: str) -> tuple[_Listing, dict[str, str | None]]:
        data, tag = self._objects.read(self._path(name, _LISTING))
        try:
            return _Listing.model_validate_json(data), tag
        except ValidationError as error:
            raise StoreCorrupt(f"the list of files of {name} in the object store can't be read") from error

    def _path(self, name: str, file: str) -> str:
        return f"{self._kind}/{name}/{file}"


def _at_once(transfer: Callable[[Any], None], files: Iterable[Any]) -> None:
    """Transfer files, several at a time. Raises what the first that fails raises, once all have ended."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(transfer, files):
            pass


def _visible_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("[!.]*")) if path.is_file()]


def _safe(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or any(part.startswith(".") for part in path.parts):
        raise StoreCorrupt(f"{file[:80]!r} in the object store is not a valid file name")
    return file


def _read_copied(folder: Path) -> _Copied:
    try:
        return _Copied.model_validate_json((folder / _COPIED).read_bytes())
    except (FileNotFoundError, ValidationError):
        return _Copied()


def _write_copied(folder: Path, copied: _Copied) -> None:
    with atomic_write(folder / _COPIED) as file:
        file.write(to_json(copied))
