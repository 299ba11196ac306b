"""What the commands about versions, names and landmarks print for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape

from service.client.types import (
    AliasEntry,
    KeypointNames,
    Landmarks,
    LandmarksEntry,
    LinkChange,
    PriorDiff,
    VersionEntry,
)

from .console import _table as table_of
from .console import out, tables


def show_versions(versions: Iterable[VersionEntry]) -> None:
    """The versions of a category with the names that point to them, the newest first."""
    table = table_of("version", "created", "preset", "aliases")
    for entry in versions:
        created = (entry.created_at or "")[:16].replace("T", " ")
        table.add_row(entry.version, created, entry.preset or "", ", ".join(entry.aliases))
    tables.print(table)


def show_aliases(aliases: Iterable[AliasEntry]) -> None:
    """The aliases of a category and where they point."""
    table = table_of("alias", "version")
    for entry in aliases:
        table.add_row(entry.alias, entry.version)
    tables.print(table)


def show_diff(found: PriorDiff) -> None:
    """How two priors differ."""
    out.print(f"category {found.category}: {found.from_version} -> {found.to_version}")
    out.print(f"keypoints matched by {found.matched_by}: {found.why}")
    table = table_of("from", "to", "name", "moved", "x", "y")
    for point in found.keypoints:
        way = f"{point.moved:.3f}", f"{point.dx:+.3f}", f"{point.dy:+.3f}"
        table.add_row(str(point.from_id), str(point.to_id), escape(point.name or ""), *way)
    tables.print(table)
    out.print(f"moved {found.mean_moved:.3f} in the mean, the square being 2 wide")
    for told, ids in (("lost", found.lost_keypoints), ("gained", found.gained_keypoints)):
        if ids:
            out.print(f"{told} keypoints: {', '.join(map(str, ids))}")
    for told, links in (("lost", found.lost_links), ("gained", found.gained_links)):
        shown = "  ".join(_link_change(link) for link in links[:12])
        out.print(f"{told} links, of {found.strong:g} of the strongest and more: {shown or 'none'}")


def show_names(found: KeypointNames) -> None:
    """Keypoints by number and name."""
    out.print(f"category {found.category}, version {found.version}")
    for index, name in enumerate(found.names):
        out.print(f"  {index:>2}  {escape(name)}")


def show_landmarks(found: Landmarks) -> None:
    """A set of landmarks: how far each is off on pictures that it was not fitted on."""
    checked = found.cross_validation
    out.print(
        f"category {found.category}, version {found.version}, landmarks {found.name}: fitted on {found.images} "
        f"pictures, {checked.folds} folds"
    )
    table = table_of("landmark", "pictures", "error %", "error px")
    for one in checked.per_landmark:
        table.add_row(escape(one.name), str(one.visible), _error(one.error_percent), _error(one.error_px))
    table.add_row("all", str(found.images), _error(checked.error_percent), _error(checked.error_px))
    tables.print(table)
    out.print(f"error: on pictures left out, % of the square's side; mean places: {checked.mean_place_percent:.2f} %")


def show_landmark_sets(sets: Iterable[LandmarksEntry]) -> None:
    """The sets of landmarks of a version."""
    table = table_of("name", "landmarks", "pictures", "error %", "created")
    for entry in sets:
        created = entry.created_at[:16].replace("T", " ")
        table.add_row(entry.name, str(len(entry.landmarks)), str(entry.images), _error(entry.error_percent), created)
    if table.row_count:
        tables.print(table)
    else:
        out.print("no landmarks yet; `ppl landmarks fit` fits some")


def _link_change(link: LinkChange) -> str:
    ends = link.to_ends or link.from_ends or (0, 0)
    shares = ["-" if share is None else f"{share:.2f}" for share in (link.from_share, link.to_share)]
    return f"{ends[0]}-{ends[1]} ({' -> '.join(shares)})"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
