"""``ppl priors``, ``prior``, ``memory`` and ``history``: what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from service.client import Client
from service.client.uploads import printable_name

from .options import URL, AsJson, Category, Url, Version, write_file
from .output import console as output


def priors(url: Url = URL, as_json: AsJson = False) -> None:
    """List the categories that have been learned."""
    with output.errors_shown(as_json), Client(url) as client:
        found = list(client.priors())
        if as_json:
            output.print_json({"items": output.plain(found), "next_cursor": None})
        else:
            output.show_priors(found)


def prior(
    category: Category,
    link_map: Annotated[
        Path | None, typer.Option("--link-map", metavar="OUT.png", help="Write the prior's links, drawn, as a PNG.")
    ] = None,
    version: Version = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Show what was learned about a category."""
    with output.errors_shown(as_json), Client(url) as client:
        found = client.prior(category, version)
        drawn = write_file(link_map, client.link_map(category, found.version)) if link_map else None
        if as_json:
            output.print_json(found)
            return
        output.show_prior(found, client.memory(category, found.version))
        if drawn:
            output.out.print(f"written: {escape(printable_name(drawn))}")


def memory(category: Category, version: Version = None, url: Url = URL, as_json: AsJson = False) -> None:
    """Show the poses that stand for what a category looks like."""
    with output.errors_shown(as_json), Client(url) as client:
        found = client.memory(category, version)
        if as_json:
            output.print_json(found)
        else:
            output.show_memory(found)


def history(category: Category, version: Version = None, url: Url = URL, as_json: AsJson = False) -> None:
    """Show how a prior came to be along its training."""
    with output.errors_shown(as_json), Client(url) as client:
        found = client.history(category, version)
        if as_json:
            output.print_json(found)
        else:
            output.show_history(found)
