"""``ppl versions`` and ``ppl aliases``: what a category has learned by and by, and the names that point to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.client import Client

from .options import URL, AsJson, Category, Url
from .output import console as output
from .output import versions as shown

versions = typer.Typer(name="versions", help="The versions of a category.", no_args_is_help=True)
aliases = typer.Typer(name="aliases", help="Names that point to versions; 'active' is one.", no_args_is_help=True)

Alias = Annotated[str, typer.Argument(help="Name of the alias: a-z, 0-9, - and _; 'active' for the active version.")]
AVersion = Annotated[str, typer.Argument(metavar="VERSION", help="A version of the category, or an alias of one.")]


@versions.command("list")
def list_versions(category: Category, url: Url = URL, as_json: AsJson = False) -> None:
    """List the versions of a category, the newest first."""
    with output.errors_shown(as_json), Client(url) as client:
        found = list(client.versions.list(category))
        if as_json:
            output.print_json({"items": output.plain(found), "next_cursor": None})
        else:
            shown.show_versions(found)


@versions.command("delete")
def delete_version(
    category: Category,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The version; an alias will not do.")],
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Delete a version for good; one that an alias points to is refused."""
    with output.errors_shown(as_json), Client(url) as client:
        client.versions.delete(category, version)
        output.show_done({"category": category, "deleted": version}, f"deleted: {category} {version}", as_json)


@versions.command("diff")
def diff_versions(
    category: Category,
    older: AVersion,
    newer: Annotated[str, typer.Argument(metavar="[OTHER]", help="Another version or alias.")] = "active",
    match: Annotated[
        str, typer.Option(help="Which keypoints are the same: of one number, near in position, or auto.")
    ] = "auto",
    strong: Annotated[
        float | None, typer.Option(help="Share of its prior's strongest link from which on a link counts.")
    ] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Show how two versions differ: how far keypoints moved, which links came and went."""
    with output.errors_shown(as_json), Client(url) as client:
        found = client.versions.diff(category, older, newer, match, strong)
        if as_json:
            output.print_json(found.model_dump(mode="json"))
        else:
            shown.show_diff(found)


@versions.command("export")
def export_version(
    category: Category,
    version: AVersion = "active",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The file; CATEGORY-VERSION.zip by default.")
    ] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Write a version into one file that another server imports."""
    with output.errors_shown(as_json), Client(url) as client:
        if out is None:
            version = client.prior(category, version).version
        path = client.versions.export(category, version, out or Path(f"{category}-{version}.zip"))
        output.show_done({"category": category, "version": version, "file": str(path)}, f"written: {path}", as_json)


@versions.command("import")
def import_version(
    category: Category,
    file: Annotated[Path, typer.Argument(help="A file that 'ppl versions export' wrote.")],
    activate: Annotated[
        bool | None,
        typer.Option("--activate/--no-activate", help="Whether it becomes the active version; it does if none is."),
    ] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Make a version of a file that another server exported."""
    with output.errors_shown(as_json), Client(url) as client:
        entry = client.versions.import_file(category, file, activate)
        state = ", active" if entry.active else ""
        output.show_done(entry, f"imported: {category} {entry.version}{state}", as_json)


@aliases.command("list")
def list_aliases(category: Category, url: Url = URL, as_json: AsJson = False) -> None:
    """List the aliases of a category."""
    with output.errors_shown(as_json), Client(url) as client:
        found = list(client.aliases.list(category))
        if as_json:
            output.print_json({"items": output.plain(found), "next_cursor": None})
        else:
            shown.show_aliases(found)


@aliases.command("set")
def set_alias(
    category: Category,
    alias: Alias,
    version: AVersion,
    expected: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Refuse unless the alias points to this version now.")
    ] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Point an alias to a version. 'ppl aliases set CATEGORY active OLDER' rolls back."""
    with output.errors_shown(as_json), Client(url) as client:
        entry = client.aliases.put(category, alias, version, expected)
        output.show_done(entry, f"{category}: {entry.alias} -> {entry.version}", as_json)


@aliases.command("remove")
def remove_alias(category: Category, alias: Alias, url: Url = URL, as_json: AsJson = False) -> None:
    """Remove an alias; its version stays."""
    with output.errors_shown(as_json), Client(url) as client:
        client.aliases.delete(category, alias)
        output.show_done({"category": category, "removed": alias}, f"removed: {category} {alias}", as_json)
