"""``ppl names``: what the keypoints of a version are called."""

from __future__ import annotations

from typing import Annotated

import typer

from service.client import Client

from .options import URL, AsJson, Category, Url, Version
from .output import console as output
from .output import versions as shown


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
    """Name the keypoints of a version, or show their names where none is given."""
    with output.errors_shown(as_json), Client(url) as client:
        if given:
            found = client.name_keypoints(category, given, version)
        else:
            found = client.keypoint_names(category, version)
        if as_json:
            output.print_json(found)
        else:
            shown.show_names(found)
