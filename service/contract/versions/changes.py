"""Changes to published versions: moving aliases and deleting versions."""

from __future__ import annotations

from collections.abc import Callable

from service.contract.errors import Conflict, NameTaken, UnknownVersion, VersionInUse

from .store import ACTIVE, CategoryFolder, VersionStore, check_version

MAX_ALIASES = 100  # of a category

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

    def move(state: CategoryFolder) -> tuple[str, bool]:
        now = state.target(alias)
        check(now)
        if alias in state.versions():
            raise NameTaken(f"'{alias}' is a version of category '{category}'; choose another name for the alias")
        name = store.resolve(category, version)
        if now is None and len(state.aliases()) >= MAX_ALIASES:
            raise Conflict(f"category '{category}' has {MAX_ALIASES} aliases; remove one first")
        state.put_alias(alias, name)
        return name, now is None

    return store.change(category, move)


def remove_alias(store: VersionStore, category: str, alias: str, check: Check = lambda now: None) -> None:
    """Remove an alias, not its version; ``check`` is as that of :func:`move_alias`.

    Raises:
        BadAliasName, BadCategoryName, UnknownCategory, UnknownAlias.
        Conflict: it is ``active``.
    """
    store.alias(category, alias)

    def remove(state: CategoryFolder) -> None:
        check(store.alias(category, alias))
        if alias == ACTIVE:
            raise Conflict(
                "the alias 'active' can't be removed, as requests without a version use it; move it to another version"
            )
        state.remove_alias(alias)

    store.change(category, remove)


def delete_version(store: VersionStore, category: str, version: str) -> None:
    """Delete a version, given by its name and not an alias, and its additions.

    Raises:
        BadCategoryName, BadVersionName, UnknownCategory, UnknownVersion.
        VersionInUse: an alias points to it.
    """
    check_version(version)
    store.versions(category)

    def remove(state: CategoryFolder) -> None:
        if version not in state.versions():
            raise UnknownVersion(f"category '{category}' has no version '{version}'; name a version, not an alias")
        in_use = [f"'{alias}'" for alias, target in state.aliases().items() if target == version]
        if in_use:
            raise VersionInUse(
                f"the alias {' and the alias '.join(in_use)} of category '{category}' points to version '{version}'; "
                "first move it to another version"
            )
        state.remove(version)

    store.change(category, remove)
