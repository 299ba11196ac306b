"""``ppl landmarks``: user-defined points, computed from keypoints after a handful of labelled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import URL, AsJson, Category, Url, Version
from .output import console as output
from .output import versions as text

landmarks = typer.Typer(
    name="landmarks", help="Points of your own, computed from the keypoints of a version.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="Name of the landmark set: a-z, 0-9, - and _.")]


@landmarks.command("fit")
def fit_landmarks(
    category: Category,
    name: Name,
    pictures: Annotated[list[Path], typer.Argument(help="The labelled pictures, typically 10 to 50, or their folder.")],
    labels: Annotated[Path, typer.Option(help="Positions of the landmarks: CSV or COCO keypoints JSON.")],
    version: Version = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Fit landmarks on labelled pictures; 'ppl estimate --landmarks NAME' then returns them."""
    with output.connect(url, as_json) as client:
        fitted = client.landmarks.fit(category, name, pictures, labels, version)
        output.show(fitted, as_json, text.show_landmarks)
        if fitted.unlabelled_images and not as_json:
            output.out.print(f"{fitted.unlabelled_images} pictures have no labels and were ignored")
        if fitted.labels_without_image and not as_json:
            output.out.print(f"{fitted.labels_without_image} labelled pictures were not sent; their labels are ignored")


@landmarks.command("list")
def list_landmarks(category: Category, version: Version = None, url: Url = URL, as_json: AsJson = False) -> None:
    """List the landmark sets of a version."""
    with output.connect(url, as_json) as client:
        output.show_list(client.landmarks.list(category, version), as_json, text.show_landmark_sets)


@landmarks.command("show")
def show_landmarks(
    category: Category, name: Name, version: Version = None, url: Url = URL, as_json: AsJson = False
) -> None:
    """Show a landmark set and its errors."""
    with output.connect(url, as_json) as client:
        output.show(client.landmarks.get(category, name, version), as_json, text.show_landmarks)


@landmarks.command("delete")
def delete_landmarks(
    category: Category, name: Name, version: Version = None, url: Url = URL, as_json: AsJson = False
) -> None:
    """Delete a landmark set."""
    with output.connect(url, as_json) as client:
        client.landmarks.delete(category, name, version)
        output.show_done({"category": category, "deleted": name}, f"deleted: landmarks {name}", as_json)
