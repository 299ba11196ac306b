"""``ppl versions`` and ``ppl aliases``: the versions of a category and the names that point to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from service.client.types import AliasEntry, LinkChange, PriorDiff, VersionEntry

from .commands import Category, Commands, Session
from .console import print_table, say

versions = Commands(name="versions", help="The versions of a category.", no_args_is_help=True)
aliases = Commands(name="aliases", help="Names that point to versions; 'active' is one.", no_args_is_help=True)

Alias = Annotated[str, typer.Argument(help="Name of the alias: a-z, 0-9, - and _; 'active' for the active version.")]
AVersion = Annotated[str, typer.Argument(metavar="VERSION", help="A version of the category, or an alias of one.")]


@versions.command("list")
def list_versions(session: Session, category: Category) -> None:
    """List the versions of a category, newest first."""
    session.show_list(session.client.versions.list(category), _print_versions)


@versions.command("delete")
def delete_version(
    session: Session,
    category: Category,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The version, not an alias.")],
) -> None:
    """Delete a version for good; refused if an alias points to it."""
    session.client.versions.delete(category, version)
    session.show_done({"category": category, "deleted": version}, f"deleted: {category} {version}")


@versions.command("diff")
def diff_versions(
    session: Session,
    category: Category,
    older: AVersion,
    newer: Annotated[str, typer.Argument(metavar="[OTHER]", help="Another version or alias.")] = "active",
    match: Annotated[str, typer.Option(help="How to pair keypoints: number, position or auto.")] = "auto",
    strong: Annotated[
        float | None, typer.Option(help="Smallest link weight to count, as a share of the strongest link.")
    ] = None,
) -> None:
    """Compare two versions: the movement of keypoints, lost and gained links."""
    session.show(session.client.versions.diff(category, older, newer, match, strong), _print_diff)


@versions.command("export")
def export_version(
    session: Session,
    category: Category,
    version: AVersion = "active",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The file; CATEGORY-VERSION.zip by default.")
    ] = None,
) -> None:
    """Write a version into a file that another server can import."""
    if out is None:
        version = session.client.prior(category, version).version
    path = session.client.versions.export(category, version, out or Path(f"{category}-{version}.zip"))
    session.show_done({"category": category, "version": version, "file": str(path)}, f"written: {path}")


@versions.command("import")
def import_version(
    session: Session,
    category: Category,
    file: Annotated[Path, typer.Argument(help="A file that 'ppl versions export' wrote.")],
    activate: Annotated[
        bool | None,
        typer.Option(
            "--activate/--no-activate",
            help="Whether it becomes active; by default only if the category has no active version.",
        ),
    ] = None,
) -> None:
    """Create a version from a file that another server exported."""
    entry = session.client.versions.import_file(category, file, activate)
    state = ", active" if entry.active else ""
    session.show_done(entry, f"imported: {category} {entry.version}{state}")


@aliases.command("list")
def list_aliases(session: Session, category: Category) -> None:
    """List the aliases of a category."""
    session.show_list(session.client.aliases.list(category), _print_aliases)


@aliases.command("set")
def set_alias(
    session: Session,
    category: Category,
    alias: Alias,
    version: AVersion,
    expected: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Refuse unless the alias points to this version now.")
    ] = None,
) -> None:
    """Point an alias to a version. 'ppl aliases set CATEGORY active OLDER' rolls back."""
    entry = session.client.aliases.put(category, alias, version, expected)
    session.show_done(entry, f"{category}: {entry.alias} -> {entry.version}")


@aliases.command("remove")
def remove_alias(session: Session, category: Category, alias: Alias) -> None:
    """Remove an alias; its version stays."""
    session.client.aliases.delete(category, alias)
    session.show_done({"category": category, "removed": alias}, f"removed: {category} {alias}")


def _print_versions(versions: Iterable[VersionEntry]) -> None:
    rows = [
        (it.version, (it.created_at or "")[:16].replace("T", " "), it.preset, ", ".join(it.aliases)) for it in versions
    ]
    print_table(("version", "created", "preset", "aliases"), rows)


def _print_aliases(aliases: Iterable[AliasEntry]) -> None:
    print_table(("alias", "version"), [(entry.alias, entry.version) for entry in aliases])


def _print_diff(found: PriorDiff) -> None:
    say(f"category {found.category}: {found.from_version} -> {found.to_version}")
    say(f"keypoints matched by {found.matched_by}: {found.why}")
    rows = [
        (point.from_id, point.to_id, point.name, f"{point.moved:.3f}", f"{point.dx:+.3f}", f"{point.dy:+.3f}")
        for point in found.keypoints
    ]
    print_table(("from", "to", "name", "moved", "x", "y"), rows)
    say(f"moved {found.mean_moved:.3f} on average; the square is 2 wide")
    for change, ids in (("lost", found.lost_keypoints), ("gained", found.gained_keypoints)):
        if ids:
            say(f"{change} keypoints: {', '.join(map(str, ids))}")
    for change, links in (("lost", found.lost_links), ("gained", found.gained_links)):
        shown = "  ".join(_describe_change(link) for link in links[:12])
        say(f"{change} links, at least {found.strong:g} of the strongest: {shown or 'none'}")


def _describe_change(link: LinkChange) -> str:
    ends = link.to_ends or link.from_ends or (0, 0)
    shares = ["-" if share is None else f"{share:.2f}" for share in (link.from_share, link.to_share)]
    return f"{ends[0]}-{ends[1]} ({' -> '.join(shares)})"
