"""What users change of published versions: where aliases point, and that a version is no more.

Each change happens while the category's lock is held, so it sees what others did before and nothing of it half done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from service.contract.durable_files import sync
from service.contract.errors import Conflict, NameTaken, UnknownVersion, VersionInUse

from .aliases import ACTIVE
from .store import STAGING, VersionStore

Check = Callable[[str | None], object]


def move_alias(
    store: VersionStore, category: str, alias: str, version: str, check: Check = lambda now: None
) -> tuple[str, bool]:
    """Point an alias to a version.

    Args:
        version: its name, or another alias that points to it now.
        check: told where the alias points, None where it is new; what it raises leaves all as it is.

    Returns:
        The version, and whether the alias is new.

    Raises:
        BadAliasName, BadVersionName, BadCategoryName, UnknownCategory, UnknownVersion.
        NameTaken: a version is called so.
        Conflict: the category has as many aliases as it may.
    """
    store.versions(category)
    pointers = store.pointers(category)
    with pointers.lock():
        now = pointers.target(alias)
        check(now)
        if alias in store.versions(category):
            raise NameTaken(f"'{alias}' is a version of category '{category}'; an alias can't have its name")
        name = store.resolve(category, version)
        pointers.put(alias, name)
    return name, now is None


def remove_alias(store: VersionStore, category: str, alias: str, check: Check = lambda now: None) -> None:
    """Remove an alias; its version stays.

    Args:
        check: as that of :func:`move_alias`.

    Raises:
        BadAliasName, BadCategoryName, UnknownCategory, UnknownAlias.
        Conflict: it is ``active``.
    """
    store.alias(category, alias)
    pointers = store.pointers(category)
    with pointers.lock():
        check(store.alias(category, alias))
        if alias == ACTIVE:
            raise Conflict("the alias 'active' can't be removed, only moved: requests without a version get it")
        pointers.remove(alias)


def delete_version(store: VersionStore, category: str, version: str) -> None:
    """Remove a version and what was added to it.

    Args:
        version: its name; an alias will not do.

    Raises:
        BadCategoryName, BadVersionName, UnknownCategory, UnknownVersion.
        VersionInUse: it is the active one, or another alias points to it.
    """
    final, additions = store.path(category, version), store.additions_path(category, version)
    store.versions(category)
    pointers = store.pointers(category)
    with pointers.lock():
        if version not in store.versions(category):
            raise UnknownVersion(f"category '{category}' has no version '{version}'; an alias is no version")
        held = [f"'{alias}'" for alias, target in pointers.all().items() if target == version]
        if held:
            raise VersionInUse(
                f"the alias {' and the alias '.join(held)} of category '{category}' points to version '{version}'; "
                "first move it to another version"
            )
        gone = [_vanish(path, final.parent) for path in (additions, final) if path.exists()]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)


def _vanish(path: Path, beside: Path) -> Path:
    """Rename a folder to what the sweep of staging folders removes, should this process die before it does."""
    gone = beside / f"{STAGING}gone-{os.getpid()}-{path.parent.name}-{path.name}"
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(path, gone)
    sync(path.parent)
    return gone
