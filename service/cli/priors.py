"""``ppl priors``, ``prior``, ``memory``, ``history`` and ``names``: the learned priors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from service.client.uploads import printable_name

from .options import URL, AsJson, Category, Url, Version
from .output import console as output
from .output.priors import show_history, show_memory, show_prior, show_priors
from .output.versions import show_names


def priors(url: Url = URL, as_json: AsJson = False) -> None:
    """List the trained categories."""
    with output.connect(url, as_json) as client:
        output.show_list(client.priors(), as_json, show_priors)


def prior(
    category: Category,
    link_map: Annotated[
        Path | None, typer.Option("--link-map", metavar="OUT.png", help="Write the prior's link map as a PNG.")
    ] = None,
    version: Version = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Show the pose prior of a category."""
    with output.connect(url, as_json) as client:
        found = client.prior(category, version)
        if link_map:
            output.write_file(link_map, client.link_map(category, found.version))
        if as_json:
            output.print_json(found)
            return
        show_prior(found, client.memory(category, found.version))
        if link_map:
            output.out.print(f"written: {escape(printable_name(link_map))}")


def memory(category: Category, version: Version = None, url: Url = URL, as_json: AsJson = False) -> None:
    """Show the prototypes in the memory of a category."""
    with output.connect(url, as_json) as client:
        output.show(client.memory(category, version), as_json, show_memory)


def history(category: Category, version: Version = None, url: Url = URL, as_json: AsJson = False) -> None:
    """Show how a prior changed during its training."""
    with output.connect(url, as_json) as client:
        output.show(client.history(category, version), as_json, show_history)


def names(
    category: Category,
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="A name for each keypoint, in the order of their numbers."),
    ] = None,
    version: Version = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Name the keypoints of a version, or show their names if none are given."""
    with output.connect(url, as_json) as client:
        if given:
            found = client.name_keypoints(category, given, version)
        else:
            found = client.keypoint_names(category, version)
        output.show(found, as_json, show_names)
