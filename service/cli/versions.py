"""``ppl versions`` and ``ppl aliases``: the versions of a category and the names that point to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import URL, AsJson, Category, Url
from .output import console as output
from .output import versions as text

versions = typer.Typer(name="versions", help="The versions of a category.", no_args_is_help=True)
aliases = typer.Typer(name="aliases", help="Names that point to versions; 'active' is one.", no_args_is_help=True)

Alias = Annotated[str, typer.Argument(help="Name of the alias: a-z, 0-9, - and _; 'active' for the active version.")]
AVersion = Annotated[str, typer.Argument(metavar="VERSION", help="A version of the category, or an alias of one.")]


@versions.command("list")
def list_versions(category: Category, url: Url = URL, as_json: AsJson = False) -> None:
    """List the versions of a category, newest first."""
    with output.connect(url, as_json) as client:
        output.show_list(client.versions.list(category), as_json, text.show_versions)


@versions.command("delete")
def delete_version(
    category: Category,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The version, not an alias.")],
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Delete a version for good; refused if an alias points to it."""
    with output.connect(url, as_json) as client:
        client.versions.delete(category, version)
        output.show_done({"category": category, "deleted": version}, f"deleted: {category} {version}", as_json)


@versions.command("diff")
def diff_versions(
    category: Category,
    older: AVersion,
    newer: Annotated[str, typer.Argument(metavar="[OTHER]", help="Another version or alias.")] = "active",
    match: Annotated[str, typer.Option(help="How to pair keypoints: number, position or auto.")] = "auto",
    strong: Annotated[
        float | None, typer.Option(help="Smallest link weight to count, as a share of the strongest link.")
    ] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Compare two versions: the movement of keypoints, lost and gained links."""
    with output.connect(url, as_json) as client:
        output.show(client.versions.diff(category, older, newer, match, strong), as_json, text.show_diff)


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
    """Write a version into a file that another server can import."""
    with output.connect(url, as_json) as client:
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
        typer.Option(
            "--activate/--no-activate",
            help="Whether it becomes active; by default only if the category has no active version.",
        ),
    ] = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Create a version from a file that another server exported."""
    with output.connect(url, as_json) as client:
        entry = client.versions.import_file(category, file, activate)
        state = ", active" if entry.active else ""
        output.show_done(entry, f"imported: {category} {entry.version}{state}", as_json)


@aliases.command("list")
def list_aliases(category: Category, url: Url = URL, as_json: AsJson = False) -> None:
    """List the aliases of a category."""
    with output.connect(url, as_json) as client:
        output.show_list(client.aliases.list(category), as_json, text.show_aliases)


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
    with output.connect(url, as_json) as client:
        entry = client.aliases.put(category, alias, version, expected)
        output.show_done(entry, f"{category}: {entry.alias} -> {entry.version}", as_json)


@aliases.command("remove")
def remove_alias(category: Category, alias: Alias, url: Url = URL, as_json: AsJson = False) -> None:
    """Remove an alias; its version stays."""
    with output.connect(url, as_json) as client:
        client.aliases.delete(category, alias)
        output.show_done({"category": category, "removed": alias}, f"removed: {category} {alias}", as_json)
