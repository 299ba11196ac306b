"""Text output of versions, aliases, keypoint names and landmarks."""

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

from .console import make_table, out, print_table


def show_versions(versions: Iterable[VersionEntry]) -> None:
    """Print the versions of a category with their aliases."""
    table = make_table("version", "created", "preset", "aliases")
    for entry in versions:
        created = (entry.created_at or "")[:16].replace("T", " ")
        table.add_row(entry.version, created, entry.preset or "", ", ".join(entry.aliases))
    print_table(table)


def show_aliases(aliases: Iterable[AliasEntry]) -> None:
    """Print aliases and their versions."""
    table = make_table("alias", "version")
    for entry in aliases:
        table.add_row(entry.alias, entry.version)
    print_table(table)


def show_diff(found: PriorDiff) -> None:
    """Print the differences of two priors."""
    out.print(f"category {found.category}: {found.from_version} -> {found.to_version}")
    out.print(f"keypoints matched by {found.matched_by}: {found.why}")
    table = make_table("from", "to", "name", "moved", "x", "y")
    for point in found.keypoints:
        shift = f"{point.moved:.3f}", f"{point.dx:+.3f}", f"{point.dy:+.3f}"
        table.add_row(str(point.from_id), str(point.to_id), escape(point.name or ""), *shift)
    print_table(table)
    out.print(f"moved {found.mean_moved:.3f} on average; the square is 2 wide")
    for change, ids in (("lost", found.lost_keypoints), ("gained", found.gained_keypoints)):
        if ids:
            out.print(f"{change} keypoints: {', '.join(map(str, ids))}")
    for change, links in (("lost", found.lost_links), ("gained", found.gained_links)):
        shown = "  ".join(_link_change(link) for link in links[:12])
        out.print(f"{change} links, at least {found.strong:g} of the strongest: {shown or 'none'}")


def show_names(found: KeypointNames) -> None:
    """Print keypoints by number and name."""
    out.print(f"category {found.category}, version {found.version}")
    for index, name in enumerate(found.names):
        out.print(f"  {index:>2}  {escape(name)}")


def show_landmarks(found: Landmarks) -> None:
    """Print a landmark set and its errors on pictures that it was not fitted on."""
    checked = found.cross_validation
    out.print(
        f"category {found.category}, version {found.version}, landmarks {found.name}: fitted on {found.images} "
        f"pictures, {checked.folds} folds"
    )
    table = make_table("landmark", "pictures", "error %", "error px")
    for landmark in checked.per_landmark:
        table.add_row(
            escape(landmark.name), str(landmark.visible), _error(landmark.error_percent), _error(landmark.error_px)
        )
    table.add_row("all", str(found.images), _error(checked.error_percent), _error(checked.error_px))
    print_table(table)
    out.print(f"error on held-out pictures, % of the square's side; mean position: {checked.mean_place_percent:.2f} %")


def show_landmark_sets(sets: Iterable[LandmarksEntry]) -> None:
    """Print landmark sets as a table."""
    table = make_table("name", "landmarks", "pictures", "error %", "created")
    for entry in sets:
        created = entry.created_at[:16].replace("T", " ")
        table.add_row(entry.name, str(len(entry.landmarks)), str(entry.images), _error(entry.error_percent), created)
    print_table(table, if_empty="no landmarks yet; `ppl landmarks fit` fits some")


def _link_change(link: LinkChange) -> str:
    ends = link.to_ends or link.from_ends or (0, 0)
    shares = ["-" if share is None else f"{share:.2f}" for share in (link.from_share, link.to_share)]
    return f"{ends[0]}-{ends[1]} ({' -> '.join(shares)})"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
