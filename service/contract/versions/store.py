"""Published versions on disk, and the aliases that point to them.

A version's folder is written beside its final place, synced and renamed, so a reader sees all of it or nothing, also
after a crash. Published versions never change; see :mod:`.additions` and :mod:`.changes`.

An alias is a JSON file that is replaced as a whole. Moving one and removing a version need the category's lock, so
that gateways and a worker that publishes at the same time agree.

categories/<category>/active.json              the alias ``active``
categories/<category>/aliases/<alias>.json     the others
categories/<category>/.lock                    the lock
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partialmethod
from pathlib import Path
from typing import Any, TypeVar

from service.contract.durable_files import folder_names, hold_lock, read_json, sync, write_json
from service.contract.errors import (
    BadAliasName,
    BadCategoryName,
    BadVersionName,
    NameTaken,
    NoHistory,
    StoreCorrupt,
    UnknownAlias,
    UnknownCategory,
    UnknownVersion,
    VersionExists,
)

ACTIVE = "active"
STAGING = ".staging-"
ADDITIONS = "additions"
Result = TypeVar("Result")
_NAME_RULE = "hold only a-z, 0-9, - and _, 64 characters at most"

is_alias = re.compile(r"[a-z][a-z0-9_-]{0,63}").fullmatch
is_category = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}").fullmatch
is_version = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}").fullmatch


def check_alias(name: str) -> str:
    """Return the alias if its name is valid. Raises BadAliasName, also for paths."""
    if not is_alias(name):
        raise BadAliasName(f"alias {name[:80]!r} must start with a letter a-z and {_NAME_RULE}")
    return name


class CategoryFolder:
    """The aliases and versions of one category. Reading needs no lock; see :meth:`VersionStore.change` for writing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the category's lock, against other threads and processes of this machine."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.folder / ".lock"):
            yield

    def versions(self) -> list[str]:
        """Return the names of the versions, the newest first."""
        return sorted(filter(is_version, folder_names(self.folder / "versions")), reverse=True)

    def target(self, alias: str) -> str | None:
        """Return the version that an alias points to; None if the alias does not exist."""
        try:
            version = read_json(self._path(alias)).get("version")
        except FileNotFoundError:
            return None
        if not isinstance(version, str):
            raise StoreCorrupt(f"the alias '{alias}' of category '{self.folder.name}' names no version; set it again")
        return version

    def aliases(self) -> dict[str, str]:
        """Return {alias: version}, ``active`` first, the others by name."""
        names = sorted(path.stem for path in (self.folder / "aliases").glob("*.json"))
        found = {name: self.target(name) for name in (ACTIVE, *filter(is_alias, names))}
        return {name: version for name, version in found.items() if version is not None}

    def put_alias(self, alias: str, version: str) -> None:
        """Point an alias to a version."""
        path = self._path(alias)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"version": version})

    def remove_alias(self, alias: str) -> None:
        """Remove an alias. Idempotent."""
        path = self._path(alias)
        with suppress(FileNotFoundError):
            path.unlink()
            sync(path.parent)

    def add(self, staged: Path, version: str) -> None:
        """Make a synced folder on the same disk a version, and its folder ADDITIONS that version's additions."""
        final, added = self.folder / "versions" / version, self.folder / ADDITIONS / version
        final.parent.mkdir(exist_ok=True)
        shutil.rmtree(added, ignore_errors=True)  # left by a crash between the two renames
        try:
            if (staged / ADDITIONS).exists():
                added.parent.mkdir(exist_ok=True)
                os.rename(staged / ADDITIONS, added)
                sync(added.parent)
            os.rename(staged, final)
        except OSError:  # no room
            shutil.rmtree(added, ignore_errors=True)
            raise
        for folder in (final.parent, self.folder, self.folder.parent):
            sync(folder)

    def remove(self, version: str) -> None:
        """Remove a version and its additions, each at once for readers, whatever happens to this process."""
        final, added = self.folder / "versions" / version, self.folder / ADDITIONS / version
        for path in (added, final):
            gone = final.with_name(f"{STAGING}gone-{os.getpid()}-{path.parent.name}-{version}")  # a sweep removes it
            shutil.rmtree(gone, ignore_errors=True)
            with suppress(FileNotFoundError):
                os.rename(path, gone)
                sync(path.parent)
            shutil.rmtree(gone, ignore_errors=True)

    def put_addition(self, version: str, name: str, document: Any) -> None:
        """Write one of a version's additions, given by its path below their folder."""
        path = self.folder / ADDITIONS / version / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, document)

    def remove_addition(self, version: str, name: str) -> None:
        """Remove one of a version's additions. Raises FileNotFoundError."""
        path = self.folder / ADDITIONS / version / name
        path.unlink()
        sync(path.parent)

    def _path(self, alias: str) -> Path:
        if alias == ACTIVE:
            return self.folder / "active.json"
        return self.folder / "aliases" / f"{check_alias(alias)}.json"


def check_category(name: str) -> str:
    """Return the category if its name is valid. Raises BadCategoryName, also for paths."""
    if not is_category(name):
        raise BadCategoryName(f"category {name[:80]!r} must start with a letter a-z or a digit and {_NAME_RULE}")
    return name


def check_version(name: str) -> str:
    """Return the version name if it is valid. Raises BadVersionName, also for paths."""
    if not is_version(name):
        raise BadVersionName(f"{name[:80]!r} is not a valid version name; GET /priors lists them")
    return name


def new_version_id(job_id: str, now: datetime | None = None, *, step: int | None = None) -> str:
    """Return a name that sorts by time of publication, e.g. 20261123T064501-1f3a9c (UTC).

    Args:
        step: the last one of a version that is made while its job goes on; it ends the name, as in -step250.
    """
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    return f"{moment:%Y%m%dT%H%M%S}-{job_id[-6:]}" + ("" if step is None else f"-step{step}")


class VersionStore:
    """The versions under a data root. Reading needs no lock."""

    def __init__(self, data_root: Path) -> None:
        self.root = data_root / "categories"

    def categories(self) -> list[str]:
        """Return the names of categories with at least one version, sorted."""
        return sorted(name for name in folder_names(self.root) if is_category(name) and self._version_names(name))

    def versions(self, category: str) -> list[str]:
        """Return the versions of a category, the newest first. Raises UnknownCategory."""
        names = self._version_names(check_category(category))
        if not names:
            raise UnknownCategory(f"no category '{category}'; GET /priors lists them, POST /train-jobs trains one")
        return names

    def active(self, category: str) -> str | None:
        """Return the active version; None between the first publication and its activation."""
        self.versions(category)
        version = self.state(category).target(ACTIVE)
        return None if version is None else check_version(version)

    def aliases(self, category: str) -> dict[str, str]:
        """Return {alias: version} of a category, ``active`` first. Raises UnknownCategory."""
        self.versions(category)
        return self.state(category).aliases()

    def alias(self, category: str, alias: str) -> str:
        """Return the version of an alias. Raises BadCategoryName, BadAliasName, UnknownCategory, UnknownAlias."""
        self.versions(category)
        version = self.state(category).target(alias)
        if version is None:
            raise UnknownAlias(f"category '{category}' has no alias '{alias}'; see GET /priors/{category}/aliases")
        return version

    def resolve(self, category: str, version: str | None = None) -> str:
        """Return the name of the version that a request refers to.

        Args:
            version: a name or alias; None for the active version.

        Raises:
            BadCategoryName, BadVersionName, UnknownCategory, UnknownVersion.
        """
        names = self.versions(category)
        if version in (None, ACTIVE):
            version = self.active(category)
            if version is None:
                raise UnknownVersion(
                    f"category '{category}' has no active version yet; name one of its versions, or make one active "
                    f"(PUT /priors/{category}/aliases/active)"
                )
        if check_version(version) in names:
            return version
        target = self.state(category).target(version) if is_alias(version) else None
        if target is None or target not in names:
            raise UnknownVersion(
                f"category '{category}' has no version and no alias '{version}'; "
                f"GET /priors/{category}/versions lists the versions"
            )
        return target

    def path(self, category: str, version: str) -> Path:
        """Return the folder of a version, which may not exist. Raises BadCategoryName, BadVersionName."""
        return self.root / check_category(category) / "versions" / check_version(version)

    def file(self, category: str, version: str, name: str) -> Path:
        """Return the path of one of a version's files, which may not exist."""
        return self.path(category, version) / name

    def complete(self, category: str, version: str) -> Path:
        """Return the folder of a version with all its files; it may not exist."""
        return self.path(category, version)

    def _read(self, category: str, version: str, name: str) -> dict[str, Any]:
        self.resolve(category, version)
        try:
            return read_json(self.file(category, version, name))
        except FileNotFoundError as error:
            self.identity(category, version)  # it may have been deleted meanwhile
            raise StoreCorrupt(f"version '{version}' of category '{category}' lacks its {name}") from error

    info = partialmethod(_read, name="version.json")  # job, time, preset, settings, training facts, checksums
    prior = partialmethod(_read, name="prior.json")  # keypoint prior, connectivity prior, links
    memory = partialmethod(_read, name="memory.json")  # sizes, use counts, prototypes
    config = partialmethod(_read, name="config.json")  # every setting of the model

    def history(self, category: str, version: str) -> dict[str, Any]:
        """Read history.json: snapshots of the prior during training. Raises NoHistory and those of :meth:`resolve`."""
        self.resolve(category, version)
        try:
            return read_json(self.file(category, version, "history.json"))
        except FileNotFoundError as error:
            raise NoHistory(
                f"version '{version}' of category '{category}' was published by a release that kept no history"
            ) from error

    def weights_path(self, category: str, version: str) -> Path:
        """Return the path of weights.safetensors; its tensor "memory.codebook" is (M, V, D)."""
        return self.file(category, version, "weights.safetensors")

    def find_by_job(self, category: str, job_id: str) -> str | None:
        """Return the version that a job published at its end, if any."""
        for version in self._version_names(check_category(category)):
            if version.endswith(job_id[-6:]) and self.info(category, version).get("job_id") == job_id:
                return version
        return None

    @contextmanager
    def staging(self, category: str, version: str) -> Iterator[Path]:
        """Create a folder for :meth:`publish`; remove it at the end of the block if it was not published.

        The folder's name is unique, as another process may stage the same version. Workers remove what a crash leaves.
        """
        final = self.path(category, version)
        final.parent.mkdir(parents=True, exist_ok=True)
        folder = final.with_name(f"{STAGING}{version}-{secrets.token_hex(4)}")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def list_staged(self, category: str = "*", suffix: str = "") -> list[Path]:
        """Return the staging folders of one or all categories: of running and of crashed publications."""
        return sorted(self.root.glob(f"{category}/versions/{STAGING}*{suffix}"))

    def sweep_staged(self, category: str, job_id: str) -> None:
        """Remove the staging folders of a job's crashed publication; the caller holds the job's lease."""
        for path in self.list_staged(category, f"-{job_id[-6:]}*"):
            shutil.rmtree(path, ignore_errors=True)

    def publish(self, staged: Path, category: str, version: str) -> Path:
        """Publish a folder on the same disk as a version, atomically.

        A folder ADDITIONS in it becomes the version's additions, in place before the version is.

        Raises:
            VersionExists: versions never change.
            NameTaken: an alias has this name.
        """
        for path in (*staged.rglob("*"), staged):
            sync(path)

        def add(state: CategoryFolder) -> None:
            if version in state.versions():
                raise VersionExists(f"category '{category}' has a version '{version}' already; versions never change")
            if version == ACTIVE or (is_alias(version) and state.target(version) is not None):
                raise NameTaken(
                    f"'{version}' is an alias of category '{category}'; choose another name for the version"
                )
            state.add(staged, version)

        final = self.path(category, version)
        self.change(category, add)
        return final

    def activate(self, category: str, version: str) -> None:
        """Make a version the active one. Raises UnknownVersion."""

        def activate(state: CategoryFolder) -> None:
            if version not in state.versions():
                raise UnknownVersion(f"category '{category}' has no version '{version}'")
            state.put_alias(ACTIVE, version)

        self.change(category, activate)

    def additions_path(self, category: str, version: str) -> Path:
        """Return the folder of a version's additions, which may not exist; see :mod:`.additions`."""
        return self.root / check_category(category) / ADDITIONS / check_version(version)

    def identity(self, category: str, version: str, folder: str | None = None) -> tuple[int, int]:
        """Return inode and ctime of a version's folder; they differ if it was deleted and re-created.

        Args:
            folder: the version's folder, if already known.

        Raises:
            BadCategoryName, BadVersionName, UnknownCategory, UnknownVersion.
        """
        try:
            status = os.stat(folder or self.path(category, version))
        except FileNotFoundError as error:
            self.versions(category)
            raise UnknownVersion(f"category '{category}' has no version '{version}'") from error
        return status.st_ino, status.st_ctime_ns

    def state(self, category: str) -> CategoryFolder:
        """Return the state of a category, for reading."""
        return CategoryFolder(self.root / check_category(category))

    def change(self, category: str, body: Callable[[CategoryFolder], Result]) -> Result:
        """Change a category by a function that checks its state and changes it; return what the function returns.

        No other change happens between the check and the change, not by another process either. An error from the
        function cancels the change, so it changes nothing before its last check.
        """
        state = self.state(category)
        with state.lock():
            return body(state)

    def _version_names(self, category: str) -> list[str]:
        return CategoryFolder(self.root / category).versions()
