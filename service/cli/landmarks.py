"""``ppl landmarks``: user-defined points, computed from keypoints after a handful of labelled pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from service.client.types import Landmarks, LandmarksEntry

from .commands import Category, Commands, Session, Version
from .console import out, print_table, say

landmarks = Commands(
    name="landmarks", help="Points of your own, computed from the keypoints of a version.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="Name of the landmark set: a-z, 0-9, - and _.")]


@landmarks.command("fit")
def fit_landmarks(
    session: Session,
    category: Category,
    name: Name,
    pictures: Annotated[list[Path], typer.Argument(help="The labelled pictures, typically 10 to 50, or their folder.")],
    labels: Annotated[Path, typer.Option(help="Positions of the landmarks: CSV or COCO keypoints JSON.")],
    version: Version = None,
) -> None:
    """Fit landmarks on labelled pictures; 'ppl estimate --landmarks NAME' then returns them."""
    fitted = session.client.landmarks.fit(category, name, pictures, labels, version)
    session.show(fitted, print_landmarks)
    if fitted.unlabelled_images and not session.as_json:
        out.print(f"{fitted.unlabelled_images} pictures have no labels and were ignored")
    if fitted.labels_without_image and not session.as_json:
        out.print(f"{fitted.labels_without_image} labelled pictures were not sent; their labels are ignored")


@landmarks.command("list")
def list_landmarks(session: Session, category: Category, version: Version = None) -> None:
    """List the landmark sets of a version."""
    session.show_list(session.client.landmarks.list(category, version), _print_sets)


@landmarks.command("show")
def show_landmarks(session: Session, category: Category, name: Name, version: Version = None) -> None:
    """Show a landmark set and its errors."""
    session.show(session.client.landmarks.get(category, name, version), print_landmarks)


@landmarks.command("delete")
def delete_landmarks(session: Session, category: Category, name: Name, version: Version = None) -> None:
    """Delete a landmark set."""
    session.client.landmarks.delete(category, name, version)
    session.show_done({"category": category, "deleted": name}, f"deleted: landmarks {name}")


def print_landmarks(found: Landmarks) -> None:
    """Print a landmark set and its errors on pictures that it was not fitted on."""
    checked = found.cross_validation
    say(
        f"category {found.category}, version {found.version}, landmarks {found.name}: fitted on {found.images} "
        f"pictures, {checked.folds} folds"
    )
    rows = [(it.name, it.visible, _error(it.error_percent), _error(it.error_px)) for it in checked.per_landmark]
    rows.append(("all", found.images, _error(checked.error_percent), _error(checked.error_px)))
    print_table(("landmark", "pictures", "error %", "error px"), rows)
    out.print(f"error on held-out pictures, % of the square's side; mean position: {checked.mean_place_percent:.2f} %")


def _print_sets(sets: Iterable[LandmarksEntry]) -> None:
    rows = [
        (it.name, len(it.landmarks), it.images, _error(it.error_percent), it.created_at[:16].replace("T", " "))
        for it in sets
    ]
    columns = ("name", "landmarks", "pictures", "error %", "created")
    print_table(columns, rows, if_empty="no landmarks yet; `ppl landmarks fit` fits some")


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
