"""``ppl versions``, ``aliases`` and ``landmarks``: versions of a category, their names, and points they compute."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from service.client.types import AliasEntry, Landmarks, LandmarksEntry, LinkChange, PriorDiff, VersionEntry

from .commands import BoxesFile, Category, Commands, LabelsFit, Session, Version
from .console import print_table, say

versions = Commands(name="versions", help="The versions of a category.", no_args_is_help=True)
aliases = Commands(name="aliases", help="Names that point to versions; 'active' is one.", no_args_is_help=True)
landmarks = Commands(
    name="landmarks", help="Points of your own, computed from the keypoints of a version.", no_args_is_help=True
)

Alias = Annotated[str, typer.Argument(help="Name of the alias: a-z, 0-9, - and _; 'active' for the active version.")]
AVersion = Annotated[str, typer.Argument(metavar="VERSION", help="A version of the category, or an alias of one.")]
Name = Annotated[str, typer.Argument(help="Name of the landmark set: a-z, 0-9, - and _.")]


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


@landmarks.command("fit")
def fit_landmarks(
    session: Session,
    category: Category,
    name: Name,
    pictures: Annotated[list[Path], typer.Argument(help="The labelled pictures, typically 10 to 50, or their folder.")],
    labels: Annotated[Path, typer.Option(help="Positions of the landmarks: CSV, DeepLabCut, COCO …")],
    boxes: BoxesFile = None,
    labels_fit: LabelsFit = None,
    version: Version = None,
) -> None:
    """Fit landmarks on labelled pictures; 'ppl estimate --landmarks NAME' then returns them."""
    fitted = session.client.landmarks.fit(category, name, pictures, labels, version, boxes, labels_fit)
    session.show(fitted, _print_landmarks)
    if fitted.unlabelled_images and not session.as_json:
        say(f"{fitted.unlabelled_images} pictures have no labels and were ignored")
    if fitted.labels_without_image and not session.as_json:
        say(f"{fitted.labels_without_image} labelled pictures were not sent; their labels are ignored")


@landmarks.command("list")
def list_landmarks(session: Session, category: Category, version: Version = None) -> None:
    """List the landmark sets of a version."""
    session.show_list(session.client.landmarks.list(category, version), _print_sets)


@landmarks.command("show")
def show_landmarks(session: Session, category: Category, name: Name, version: Version = None) -> None:
    """Show a landmark set and its errors."""
    session.show(session.client.landmarks.get(category, name, version), _print_landmarks)


@landmarks.command("delete")
def delete_landmarks(session: Session, category: Category, name: Name, version: Version = None) -> None:
    """Delete a landmark set."""
    session.client.landmarks.delete(category, name, version)
    session.show_done({"category": category, "deleted": name}, f"deleted: landmarks {name}")


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


def _print_landmarks(found: Landmarks) -> None:
    """Print a landmark set and its errors on pictures that it was not fitted on."""
    checked = found.cross_validation
    say(
        f"category {found.category}, version {found.version}, landmarks {found.name}: fitted on {found.images} "
        f"pictures, {checked.folds} folds"
    )
    rows = [(it.name, it.visible, _error(it.error_percent), _error(it.error_px)) for it in checked.per_landmark]
    rows.append(("all", found.images, _error(checked.error_percent), _error(checked.error_px)))
    print_table(("landmark", "pictures", "error %", "error px"), rows)
    say(f"error on held-out pictures, % of the square's side; mean position: {checked.mean_place_percent:.2f} %")


def _print_sets(sets: Iterable[LandmarksEntry]) -> None:
    rows = [
        (it.name, len(it.landmarks), it.images, _error(it.error_percent), it.created_at[:16].replace("T", " "))
        for it in sets
    ]
    columns = ("name", "landmarks", "pictures", "error %", "created")
    print_table(columns, rows, if_empty="no landmarks yet; `ppl landmarks fit` fits some")


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
