"""``ppl landmarks``: points of one's own, told from the keypoints after a handful of labelled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.client import Client

from .options import URL, AsJson, Category, Url, Version
from .output import console as output
from .output import versions as shown

landmarks = typer.Typer(
    name="landmarks", help="Points of your own, told from the keypoints of a version.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="Name of the set of landmarks: a-z, 0-9, - and _.")]


@landmarks.command("fit")
def fit_landmarks(
    category: Category,
    name: Name,
    pictures: Annotated[list[Path], typer.Argument(help="The labelled pictures, 10 to 50 as a rule, or their folder.")],
    labels: Annotated[Path, typer.Option(help="Where the landmarks are: CSV or COCO keypoints JSON.")],
    version: Version = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Fit landmarks on labelled pictures; 'ppl estimate --landmarks NAME' has them from then on."""
    with output.errors_shown(as_json), Client(url) as client:
        found = client.landmarks.fit(category, name, pictures, labels, version)
        if as_json:
            output.print_json(found)
            return
        shown.show_landmarks(found)
        if found.unlabelled_images:
            output.out.print(f"{found.unlabelled_images} pictures have no labels and did not count")
        if found.labels_without_image:
            output.out.print(f"{found.labels_without_image} labelled pictures were not sent and did not count")


@landmarks.command("list")
def list_landmarks(category: Category, version: Version = None, url: Url = URL, as_json: AsJson = False) -> None:
    """List the sets of landmarks of a version."""
    with output.errors_shown(as_json), Client(url) as client:
        found = list(client.landmarks.list(category, version))
        if as_json:
            output.print_json({"items": output.plain(found), "next_cursor": None})
        else:
            shown.show_landmark_sets(found)


@landmarks.command("show")
def show_landmarks(
    category: Category, name: Name, version: Version = None, url: Url = URL, as_json: AsJson = False
) -> None:
    """Show a set of landmarks and its errors."""
    with output.errors_shown(as_json), Client(url) as client:
        found = client.landmarks.get(category, name, version)
        if as_json:
            output.print_json(found)
        else:
            shown.show_landmarks(found)


@landmarks.command("delete")
def delete_landmarks(
    category: Category, name: Name, version: Version = None, url: Url = URL, as_json: AsJson = False
) -> None:
    """Delete a set of landmarks."""
    with output.errors_shown(as_json), Client(url) as client:
        client.landmarks.delete(category, name, version)
        output.show_done({"category": category, "deleted": name}, f"deleted: landmarks {name}", as_json)
