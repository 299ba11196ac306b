"""``ppl priors``, ``prior``, ``memory``, ``history`` and ``names``: the learned priors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from math import dist
from pathlib import Path
from typing import Annotated

import typer

from service.client import History, Memory, Prior
from service.client.types import KeypointNames, PriorEntry, Quality, Snapshot

from .commands import Category, Session, Version
from .console import out, print_json, print_path, print_table, say, write_file


def priors(session: Session) -> None:
    """List the trained categories."""
    session.show_list(session.client.priors(), _print_priors)


def prior(
    session: Session,
    category: Category,
    link_map: Annotated[
        Path | None, typer.Option("--link-map", metavar="OUT.png", help="Write the prior's link map as a PNG.")
    ] = None,
    version: Version = None,
) -> None:
    """Show the pose prior of a category."""
    client = session.client
    found = client.prior(category, version)
    if link_map:
        write_file(link_map, client.link_map(category, found.version))
    if session.as_json:
        print_json(found)
        return
    _print_prior(found, client.memory(category, found.version))
    if link_map:
        print_path(link_map)


def memory(session: Session, category: Category, version: Version = None) -> None:
    """Show the prototypes in the memory of a category."""
    session.show(session.client.memory(category, version), _print_memory)


def history(session: Session, category: Category, version: Version = None) -> None:
    """Show how a prior changed during its training."""
    session.show(session.client.history(category, version), _print_history)


def names(
    session: Session,
    category: Category,
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="A name for each keypoint, in the order of their numbers."),
    ] = None,
    version: Version = None,
) -> None:
    """Name the keypoints of a version, or show their names if none are given."""
    client = session.client
    found = client.name_keypoints(category, given, version) if given else client.keypoint_names(category, version)
    session.show(found, _print_names)


def _print_priors(priors: Iterable[PriorEntry]) -> None:
    rows = [(entry.category, entry.version or "-", entry.num_versions, entry.num_keypoints) for entry in priors]
    columns = ("category", "active version", "versions", "keypoints")
    print_table(columns, rows, if_empty="no category has been trained yet")


def _print_prior(prior: Prior, memory: Memory) -> None:
    out.print(f"category {prior.category}, version {prior.version}: {prior.num_keypoints} keypoints")
    names = prior.keypoint_names or range(prior.num_keypoints)
    rows = [(name, f"{x:+.3f}", f"{y:+.3f}") for name, (x, y) in zip(names, prior.keypoint_prior, strict=True)]
    print_table(("keypoint", "x", "y"), rows)
    out.print(f"strongest links  {_strongest(((link.i, link.j), link.weight) for link in prior.links)}")
    facts = {name: value for name, value in prior.training.items() if not isinstance(value, (dict, list))}
    trained = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()]
    say(f"trained  {', '.join(trained)}")
    print_quality(prior.quality)
    if not memory.num_banks:
        out.print(f"method {prior.method}: no memory")
        return
    counts = ", ".join(str(prototype.count) for prototype in memory.prototypes[:12])
    out.print(
        f"memory  {memory.num_banks} banks of {memory.bank_size} vectors; "
        f"{len(memory.prototypes)} prototypes, pictures of each: {counts}"
    )


_VERDICT_COLOURS = {"good": "green", "doubtful": "yellow", "failed": "red"}


def print_quality(quality: Quality | None) -> None:
    """Print a version's quality: the verdict with what to do, and the measures behind it."""
    if quality is None:
        out.print("quality  not measured, the version is of an older release")
        return
    out.print(f"quality  [{_VERDICT_COLOURS[quality.verdict]}]{quality.verdict}[/] ({quality.score:.2f} of 1)")
    say(f"  {quality.advice}")
    idle = f", idle keypoints {', '.join(map(str, quality.idle_keypoints))}" if quality.idle_keypoints else ""
    agrees = "" if quality.agreement is None else f"agrees with a frozen network {quality.agreement:.0%}, "
    say(
        f"  {agrees}follows the picture {quality.consistency:.0%}, moves {quality.movement_percent:.1f} % of the side, "
        f"explains {quality.explained:.1%} of the picture, mean score {quality.mean_score:.2f}{idle}"
    )


def _print_memory(memory: Memory) -> None:
    out.print(f"category {memory.category}, version {memory.version}")
    if not memory.num_banks:
        out.print("method autolink: no memory")
        return
    used = sum(count > 0 for bank in memory.use_counts for count in bank)
    size = f"{memory.num_banks} banks of {memory.bank_size} vectors of {memory.token_dim} numbers"
    out.print(f"{size}, {used} of {memory.num_banks * memory.bank_size} in use")
    rows = [(index, it.count, " ".join(map(str, it.codes))) for index, it in enumerate(memory.prototypes)]
    print_table(("prototype", "pictures", "codes"), rows)
    out.print("--json prints their keypoints too")


def _print_history(history: History) -> None:
    snapshots = history.snapshots
    out.print(f"category {history.category}, version {history.version}: {len(snapshots)} snapshots")
    movements = ["-", *(_movement(before, now) for before, now in pairwise(snapshots))]
    rows = [
        (snapshot.step, moved, _strongest(zip(_pairs(snapshot.link_weights), snapshot.link_weights, strict=True), 5))
        for snapshot, moved in zip(snapshots, movements, strict=False)
    ]
    print_table(("step", "moved", "strongest links"), rows)
    out.print("moved: mean distance of the keypoints from the line above; the square is 2 wide")


def _print_names(found: KeypointNames) -> None:
    out.print(f"category {found.category}, version {found.version}")
    for index, name in enumerate(found.names):
        say(f"  {index:>2}  {name}")


def _movement(previous: Snapshot, now: Snapshot) -> str:
    """Return the mean distance between the keypoints of two snapshots."""
    if previous.keypoint_prior is None or now.keypoint_prior is None:
        return "-"
    distances = [dist(a, b) for a, b in zip(previous.keypoint_prior, now.keypoint_prior, strict=True)]
    return f"{sum(distances) / len(distances):.3f}"


def _pairs(weights: Sequence[float]) -> Iterable[tuple[int, int]]:
    """Return the keypoints that each of L = K (K - 1) / 2 links joins."""
    return combinations(range(round((1 + (1 + 8 * len(weights)) ** 0.5) / 2)), 2)


def _strongest(links: Iterable[tuple[tuple[int, int], float]], count: int = 12) -> str:
    strongest = sorted(links, key=lambda link: -link[1])[:count]
    return "  ".join(f"{i}-{j} ({weight:.2f})" for (i, j), weight in strongest)
