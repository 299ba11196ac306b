"""``ppl versions`` and ``ppl aliases``: what a category has learned by and by, and the names that point to it."""

from __future__ import annotations

from typing import Annotated

import typer

from . import cli_output as output
from .cli_options import URL, AsJson, Category, Url
from .client import Client

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
            output.show_versions(found)


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


@aliases.command("list")
def list_aliases(category: Category, url: Url = URL, as_json: AsJson = False) -> None:
    """List the aliases of a category."""
    with output.errors_shown(as_json), Client(url) as client:
        found = list(client.aliases.list(category))
        if as_json:
            output.print_json({"items": output.plain(found), "next_cursor": None})
        else:
            output.show_aliases(found)


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
