"""Published versions in an object store, with a copy of what is used on this machine.

catalogues/<category>.json                          aliases and versions of a category
versions/<category>/<version>-<id>/files.json       size and SHA-256 of each file of a version
versions/<category>/<version>-<id>/<name>           a file of a version; never changed
versions/<category>/<version>-<id>/additions/<sha256>   one of the version's additions; never changed

A catalogue is replaced only if it is still the one that was read: of two concurrent changes to a category the second is
checked again, whichever machines make them. A version exists once the catalogue has it. The copy has the layout of
:mod:`.store` and follows the catalogues; the files of a version come at their first use, and their hashes are checked.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from service.contract.durable_files import atomic_write, sha256_of
from service.contract.errors import StoreCorrupt, StoreUnavailable, UnknownAlias, UnknownCategory, UnknownVersion
from service.contract.objects import Objects, Replaced
from service.contract.settings import CommonSettings

from .export_manifest import FileFacts
from .store import ADDITIONS, STAGING, CategoryFolder, VersionStore

FILES = "files.json"
POLL_EVERY_S = 1.0
_ENTRY, _CATALOGUE = ".entry.json", ".catalogue.json"
_TRIES = 100
_ORPHANED_S = 24 * 3600.0  # an upload takes less

Result = TypeVar("Result")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
AdditionName = Annotated[str, Field(pattern=r"^([a-z0-9_-]+/)?[a-z0-9_-]+\.json$")]
_FILES = TypeAdapter(dict[FileName, FileFacts])


class Entry(BaseModel):
    """A version in the catalogue; ``id`` differs if the version was deleted and created again."""

    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    files: Sha256 = Field(description="of files.json")
    additions: dict[AdditionName, Sha256] = Field(default_factory=dict)


class Catalogue(BaseModel):
    """The aliases and versions of a category."""

    format: Literal[1] = 1
    aliases: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, Entry] = Field(default_factory=dict)


class _Applied(BaseModel):
    """The catalogue that the copy follows now, with its tag in the object store."""

    tag: dict[str, str | None]
    catalogue: Catalogue


class _Draft(CategoryFolder):
    """A change to a catalogue. Reads what the copy says, which is up to date, and changes only the catalogue."""

    def __init__(self, folder: Path, catalogue: Catalogue, objects: Objects) -> None:
        super().__init__(folder)
        self.catalogue = catalogue
        self.staged: dict[str, Path] = {}
        self.dropped: list[str] = []  # prefixes or names in the object store
        self._objects = objects

    def put_alias(self, alias: str, version: str) -> None:
        self.catalogue.aliases[alias] = version

    def remove_alias(self, alias: str) -> None:
        self.catalogue.aliases.pop(alias, None)

    def add(self, staged: Path, version: str) -> None:
        self.catalogue.versions[version] = Entry.model_validate_json((staged / _ENTRY).read_bytes())
        self.staged[version] = staged

    def remove(self, version: str) -> None:
        self.dropped.append(_prefix(self.folder.name, version, self.catalogue.versions.pop(version)))

    def put_addition(self, version: str, name: str, document: Any) -> None:
        entry, data = self.catalogue.versions[version], to_json(document)
        digest = hashlib.sha256(data).hexdigest()
        self._objects.upload(_prefix(self.folder.name, version, entry) + f"{ADDITIONS}/{digest}", data)
        entry.additions[name] = digest

    def remove_addition(self, version: str, name: str) -> None:
        entry = self.catalogue.versions.get(version)
        if entry is None or name not in entry.additions:
            raise FileNotFoundError(name)
        del entry.additions[name]


class SharedVersions(VersionStore):
    """The versions in an object store. Methods raise StoreUnavailable too.

    Reads may be as old as the last :meth:`poll`; a category or version unknown here is looked up at once.
    """

    def __init__(self, data_root: Path, objects: Objects) -> None:
        super().__init__(data_root / "shared" / objects.key)
        self._objects = objects
        self._changing = threading.local()

    def poll(self) -> None:
        """Let the copy follow every catalogue that changed."""
        for name, tag, _ in self._objects.scan("catalogues"):
            category = name.removeprefix("catalogues/").removesuffix(".json")
            applied = self._applied(category)
            if applied is None or applied.tag != tag:
                self.refresh(category)

    def refresh(self, category: str) -> None:
        """Let the copy follow a category's catalogue now."""
        if getattr(self._changing, "category", None) == category:  # then it does, and this thread has the lock
            return
        state = self.state(category)
        if not state.folder.exists():  # leave no folder for a category that does not exist
            try:
                self._objects.read(_catalogue(category))
            except FileNotFoundError:
                return
        with state.lock():
            self._pull(category)

    def change(self, category: str, body: Callable[[CategoryFolder], Result]) -> Result:
        state = self.state(category)
        for attempt in range(_TRIES):
            with state.lock():
                catalogue, tag = self._pull(category)
                draft = _Draft(state.folder, catalogue.model_copy(deep=True), self._objects)
                self._changing.category = category
                try:
                    result = body(draft)
                finally:
                    self._changing.category = None
                try:
                    tag = self._objects.replace(_catalogue(category), to_json(draft.catalogue), tag)
                except Replaced:
                    time.sleep(random.uniform(0, 0.02 * min(attempt + 1, 10)))
                    continue
                self._follow(category, draft.catalogue, tag, draft.staged)
            for prefix in draft.dropped:
                self._objects.delete([name for name, _, _ in self._objects.scan(prefix)])
            return result
        raise StoreUnavailable(f"category '{category}' is changed by others all the time; try again in a moment")

    def publish(self, staged: Path, category: str, version: str) -> Path:
        additions = {
            str(path.relative_to(staged / ADDITIONS)): path
            for path in (staged / ADDITIONS).rglob("*")
            if path.is_file()
        }
        files = {path.name: path for path in staged.iterdir() if path.is_file() and path.name not in (FILES, _ENTRY)}
        facts = {name: FileFacts(size=path.stat().st_size, sha256=sha256_of(path)) for name, path in files.items()}
        listing = _FILES.dump_json(facts)
        entry = Entry(
            id=secrets.token_hex(8),
            files=hashlib.sha256(listing).hexdigest(),
            additions={name: sha256_of(path) for name, path in additions.items()},
        )
        prefix = _prefix(category, version, entry)
        for name, path in files.items():
            self._objects.upload(prefix + name, path)
        for name, path in additions.items():
            self._objects.upload(f"{prefix}{ADDITIONS}/{entry.additions[name]}", path)
        self._objects.upload(prefix + FILES, listing)
        shutil.rmtree(staged / ADDITIONS, ignore_errors=True)
        (staged / FILES).write_bytes(listing)
        (staged / _ENTRY).write_bytes(to_json(entry))
        return super().publish(staged, category, version)

    def sweep_objects(self) -> int:
        """Delete objects of failed publications and of replaced additions; return their number."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for name, _, changed_at in self._objects.scan("versions"):
            found[name.split("/")[1]][name] = changed_at
        now = self._objects.time() if found else 0.0
        count = 0
        for category, objects in found.items():
            catalogue = self._read_catalogue(category)[0]  # read after the listing
            entries = {_prefix(category, version, entry): entry for version, entry in catalogue.versions.items()}
            orphans = []
            for name, changed_at in objects.items():
                prefix, rest = _split(name)
                entry = entries.get(prefix)
                folder, _, digest = rest.partition("/")
                kept = entry and (folder != ADDITIONS or digest in entry.additions.values())
                if not kept and now - changed_at > _ORPHANED_S:
                    orphans.append(name)
            self._objects.delete(orphans)
            count += len(orphans)
        return count

    def versions(self, category: str) -> list[str]:
        with suppress(UnknownCategory):
            return super().versions(category)
        self.refresh(category)
        return super().versions(category)

    def alias(self, category: str, alias: str) -> str:
        with suppress(UnknownAlias):
            return super().alias(category, alias)
        self.refresh(category)
        return super().alias(category, alias)

    def resolve(self, category: str, version: str | None = None) -> str:
        with suppress(UnknownVersion):
            return super().resolve(category, version)
        self.refresh(category)
        return super().resolve(category, version)

    def find_by_job(self, category: str, job_id: str) -> str | None:
        self.refresh(category)
        return super().find_by_job(category, job_id)

    def identity(self, category: str, version: str, folder: str | None = None) -> tuple[int, int]:
        path = f"{folder or self.path(category, version)}/{_ENTRY}"
        try:
            status = os.stat(path)
        except FileNotFoundError:
            self.refresh(category)
            try:
                status = os.stat(path)
            except FileNotFoundError as error:
                self.versions(category)
                raise UnknownVersion(f"category '{category}' has no version '{version}'") from error
        return status.st_ino, status.st_mtime_ns

    def file(self, category: str, version: str, name: str) -> Path:
        path = self.path(category, version) / name
        if not path.exists():
            self._fetch(category, version, name)
        return path

    def complete(self, category: str, version: str) -> Path:
        self._fetch(category, version)
        return self.path(category, version)

    def _fetch(self, category: str, version: str, *names: str) -> None:
        """Download the files of a version, or those named, that are not here yet."""
        self.identity(category, version)
        folder = self.path(category, version)
        try:
            entry = Entry.model_validate_json((folder / _ENTRY).read_bytes())
            prefix = _prefix(category, version, entry)
            if not (folder / FILES).exists():
                self._objects.download(prefix + FILES, folder / FILES, entry.files)
            facts = _FILES.validate_json((folder / FILES).read_bytes())
            for name in names or facts:
                if name in facts and not (folder / name).exists():
                    self._objects.download(prefix + name, folder / name, facts[name].sha256)
        except ValidationError as error:
            raise StoreCorrupt(f"version '{version}' of category '{category}' can't be read") from error
        except FileNotFoundError as error:
            self.refresh(category)
            self.identity(category, version)  # it may have been deleted meanwhile
            raise StoreCorrupt(f"the object store lacks a file of version '{version}' of '{category}'") from error

    def _pull(self, category: str) -> tuple[Catalogue, Any]:
        """Return the catalogue and its tag, after the copy follows it; the caller has the lock."""
        catalogue, tag = self._read_catalogue(category)
        applied = self._applied(category)
        if tag is not None and (applied is None or applied.tag != tag):
            self._follow(category, catalogue, tag, {})
        return catalogue, tag

    def _read_catalogue(self, category: str) -> tuple[Catalogue, Any]:
        try:
            data, tag = self._objects.read(_catalogue(category))
            return Catalogue.model_validate_json(data), tag
        except FileNotFoundError:
            return Catalogue(), None
        except ValidationError as error:
            raise StoreCorrupt(
                f"the catalogue of category '{category}' can't be read, or is of a later release"
            ) from error

    def _applied(self, category: str) -> _Applied | None:
        try:
            return _Applied.model_validate_json((self.state(category).folder / _CATALOGUE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _follow(self, category: str, new: Catalogue, tag: Any, staged: dict[str, Path]) -> None:
        """Make the copy of a category follow a catalogue: first what is new, then the aliases, then what is gone."""
        state, applied = self.state(category), self._applied(category)
        old = applied.catalogue if applied else Catalogue()
        for version, entry in new.versions.items():
            known = old.versions.get(version)
            if known is None or known.id != entry.id or not self.path(category, version).exists():
                known = None
                state.remove(version)
                if version in staged:
                    state.add(staged[version], version)
                else:
                    versions = self.path(category, version).parent
                    versions.mkdir(parents=True, exist_ok=True)
                    folder = Path(mkdtemp(prefix=STAGING, dir=versions))
                    (folder / _ENTRY).write_bytes(to_json(entry))
                    state.add(folder, version)
            self._follow_additions(category, version, entry, known)
        for alias, version in new.aliases.items():
            if state.target(alias) != version:
                state.put_alias(alias, version)
        for alias in state.aliases().keys() - new.aliases.keys():
            state.remove_alias(alias)
        for version in set(state.versions()) - new.versions.keys():
            state.remove(version)
        with atomic_write(state.folder / _CATALOGUE) as file:
            file.write(to_json(_Applied(tag=tag, catalogue=new)))

    def _follow_additions(self, category: str, version: str, entry: Entry, known: Entry | None) -> None:
        folder, before = self.additions_path(category, version), known.additions if known else {}
        for name, digest in entry.additions.items():
            if before.get(name) != digest:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                source = f"{_prefix(category, version, entry)}{ADDITIONS}/{digest}"
                try:
                    self._objects.download(source, folder / name, digest)
                except FileNotFoundError as error:
                    raise StoreCorrupt(f"the object store lacks an addition to version '{version}'") from error
        for name in before.keys() - entry.additions.keys():
            (folder / name).unlink(missing_ok=True)


def open_versions(settings: CommonSettings) -> VersionStore:
    """Return the versions in PPL_STORE_URL, or those below the data root without it."""
    if settings.store_url is None:
        return VersionStore(settings.data_root)
    return SharedVersions(settings.data_root, Objects(settings.store_url))


def _catalogue(category: str) -> str:
    return f"catalogues/{category}.json"


def _prefix(category: str, version: str, entry: Entry) -> str:
    return f"versions/{category}/{version}-{entry.id}/"


def _split(name: str) -> tuple[str, str]:
    """Split the name of a version's object into the version's prefix and the rest."""
    parts = name.split("/", 3)
    return "/".join(parts[:3]) + "/", parts[3] if len(parts) > 3 else ""
