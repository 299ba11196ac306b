"""Changes to published versions, made under the category's lock: moving aliases and deleting versions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from service.contract.durable_files import sync
from service.contract.errors import Conflict, NameTaken, UnknownVersion, VersionInUse

from .store import ACTIVE, STAGING, VersionStore

Check = Callable[[str | None], object]


def move_alias(
    store: VersionStore, category: str, alias: str, version: str, check: Check = lambda now: None
) -> tuple[str, bool]:
    """Point an alias to a version; return the version, and whether the alias is new.

    Args:
        version: its name, or another alias of it.
        check: called with the current target, None for a new alias; an error from it cancels the change.

    Raises:
        BadAliasName, BadVersionName, BadCategoryName, UnknownCategory, UnknownVersion.
        NameTaken: a version has this name.
        Conflict: the limit on aliases is reached.
    """
    store.versions(category)
    pointers = store.alias_files(category)
    with pointers.lock():
        now = pointers.target(alias)
        check(now)
        if alias in store.versions(category):
            raise NameTaken(f"'{alias}' is a version of category '{category}'; choose another name for the alias")
        name = store.resolve(category, version)
        pointers.put(alias, name)
    return name, now is None


def remove_alias(store: VersionStore, category: str, alias: str, check: Check = lambda now: None) -> None:
    """Remove an alias, not its version; ``check`` is as that of :func:`move_alias`.

    Raises:
        BadAliasName, BadCategoryName, UnknownCategory, UnknownAlias.
        Conflict: it is ``active``.
    """
    store.alias(category, alias)
    pointers = store.alias_files(category)
    with pointers.lock():
        check(store.alias(category, alias))
        if alias == ACTIVE:
            raise Conflict(
                "the alias 'active' can't be removed, as requests without a version use it; move it to another version"
            )
        pointers.remove(alias)


def delete_version(store: VersionStore, category: str, version: str) -> None:
    """Delete a version, given by its name and not an alias, and its additions.

    Raises:
        BadCategoryName, BadVersionName, UnknownCategory, UnknownVersion.
        VersionInUse: an alias points to it.
    """
    final, additions = store.path(category, version), store.additions_path(category, version)
    store.versions(category)
    pointers = store.alias_files(category)
    with pointers.lock():
        if version not in store.versions(category):
            raise UnknownVersion(f"category '{category}' has no version '{version}'; name a version, not an alias")
        in_use = [f"'{alias}'" for alias, target in pointers.all().items() if target == version]
        if in_use:
            raise VersionInUse(
                f"the alias {' and the alias '.join(in_use)} of category '{category}' points to version '{version}'; "
                "first move it to another version"
            )
        removed = [_rename_away(path, final.parent) for path in (additions, final) if path.exists()]
    for path in removed:
        shutil.rmtree(path, ignore_errors=True)


def _rename_away(path: Path, beside: Path) -> Path:
    """Rename a folder to a staging name, so that a sweep removes it if this process crashes."""
    gone = beside / f"{STAGING}gone-{os.getpid()}-{path.parent.name}-{path.name}"
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(path, gone)
    sync(path.parent)
    return gone
