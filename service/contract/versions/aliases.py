"""Aliases of versions: ``active``, and those that users create.

An alias is a JSON file that is replaced as a whole. Moving one and removing a version need the category's lock, so
that gateways and a worker that publishes at the same time agree.

categories/<category>/active.json              the alias ``active``
categories/<category>/aliases/<alias>.json     the others
categories/<category>/.lock                    the lock
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.contract.durable_files import hold_lock, read_json, sync, write_json
from service.contract.errors import BadAliasName, Conflict, StoreCorrupt

ACTIVE = "active"
MAX_ALIASES = 100  # of a category
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def is_alias(name: str) -> bool:
    """Return whether a name is a valid alias."""
    return bool(_ALIAS.fullmatch(name))


def check_alias(name: str) -> str:
    """Return a valid alias. Raises BadAliasName for others, such as paths."""
    if not is_alias(name):
        raise BadAliasName(
            f"alias {name[:80]!r} must start with a letter a-z and hold only a-z, 0-9, - and _, 64 characters at most"
        )
    return name


class Aliases:
    """The aliases of one category. Reading needs no lock; writing needs :meth:`lock`.

    Args:
        folder: of the category.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the category's lock, against other threads and processes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(self._folder / ".lock"):
            yield

    def target(self, alias: str) -> str | None:
        """Return the version that an alias points to; None if the alias does not exist."""
        try:
            version = read_json(self._path(alias)).get("version")
        except FileNotFoundError:
            return None
        if not isinstance(version, str):
            raise StoreCorrupt(f"the alias '{alias}' of category '{self._folder.name}' names no version")
        return version

    def all(self) -> dict[str, str]:
        """Return {alias: version}, ``active`` first, the others by name."""
        try:
            names = sorted(path.stem for path in (self._folder / "aliases").iterdir() if path.suffix == ".json")
        except FileNotFoundError:
            names = []
        found = {name: self.target(name) for name in (ACTIVE, *filter(is_alias, names))}
        return {name: version for name, version in found.items() if version is not None}

    def put(self, alias: str, version: str) -> None:
        """Point an alias to a version. Raises Conflict if the limit on aliases is reached."""
        path = self._path(alias)
        if not path.exists() and len(self.all()) >= MAX_ALIASES:
            raise Conflict(f"category '{self._folder.name}' has {MAX_ALIASES} aliases; remove one first")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"version": version})

    def remove(self, alias: str) -> None:
        """Remove an alias. Idempotent."""
        path = self._path(alias)
        with suppress(FileNotFoundError):
            path.unlink()
            sync(path.parent)

    def _path(self, alias: str) -> Path:
        if alias == ACTIVE:
            return self._folder / "active.json"
        return self._folder / "aliases" / f"{check_alias(alias)}.json"
