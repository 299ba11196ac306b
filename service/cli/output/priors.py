"""Text output of priors, memories and histories."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import dist

from rich.markup import escape

from service.client import History, Memory, Prior
from service.client.types import PriorEntry, Snapshot

from .console import make_table, out, print_table


def show_prior(prior: Prior, memory: Memory) -> None:
    """Print the keypoint prior, the strongest links and a summary of the memory."""
    out.print(f"category {prior.category}, version {prior.version}: {prior.num_keypoints} keypoints")
    table = make_table("keypoint", "x", "y")
    for index, (x, y) in enumerate(prior.keypoint_prior):
        name = prior.keypoint_names[index] if prior.keypoint_names else str(index)
        table.add_row(escape(name), f"{x:+.3f}", f"{y:+.3f}")
    print_table(table)
    strongest = sorted(prior.links, key=lambda link: link.weight, reverse=True)[:12]
    out.print("strongest links  " + "  ".join(f"{link.i}-{link.j} ({link.weight:.2f})" for link in strongest))
    facts = {name: value for name, value in prior.training.items() if not isinstance(value, (dict, list))}
    trained = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()]
    out.print(f"trained  {escape(', '.join(trained))}")
    if not memory.num_banks:
        out.print(f"method {prior.method}: no memory")
        return
    counts = ", ".join(str(prototype.count) for prototype in memory.prototypes[:12])
    out.print(
        f"memory  {memory.num_banks} banks of {memory.bank_size} vectors; "
        f"{len(memory.prototypes)} prototypes, pictures of each: {counts}"
    )


def show_priors(priors: Sequence[PriorEntry]) -> None:
    """Print the trained categories as a table."""
    table = make_table("category", "active version", "versions", "keypoints")
    for entry in priors:
        keypoints = "" if entry.num_keypoints is None else str(entry.num_keypoints)
        table.add_row(entry.category, entry.version or "-", str(entry.num_versions), keypoints)
    print_table(table, if_empty="no category has been trained yet")


def show_memory(memory: Memory) -> None:
    """Print the size of the memory and its prototypes."""
    out.print(f"category {memory.category}, version {memory.version}")
    if not memory.num_banks:
        out.print("method autolink: no memory")
        return
    used = sum(count > 0 for bank in memory.use_counts for count in bank)
    size = f"{memory.num_banks} banks of {memory.bank_size} vectors of {memory.token_dim} numbers"
    out.print(f"{size}, {used} of {memory.num_banks * memory.bank_size} in use")
    table = make_table("prototype", "pictures", "codes")
    for index, prototype in enumerate(memory.prototypes):
        table.add_row(str(index), str(prototype.count), " ".join(map(str, prototype.codes)))
    print_table(table)
    out.print("--json prints their keypoints too")


def show_history(history: History) -> None:
    """Print the snapshots of a prior as a table: movement since the last one, and the strongest links."""
    out.print(f"category {history.category}, version {history.version}: {len(history.snapshots)} snapshots")
    table = make_table("step", "moved", "strongest links")
    previous: Snapshot | None = None
    for snapshot in history.snapshots:
        links = "  ".join(_strongest_links(snapshot.link_weights))
        table.add_row(str(snapshot.step), _movement(previous, snapshot), links)
        previous = snapshot
    print_table(table)
    out.print("moved: mean distance of the keypoints from the line above; the square is 2 wide")


def _movement(previous: Snapshot | None, now: Snapshot) -> str:
    if previous is None or previous.keypoint_prior is None or now.keypoint_prior is None:
        return "-"
    distances = [dist(a, b) for a, b in zip(previous.keypoint_prior, now.keypoint_prior, strict=True)]
    return f"{sum(distances) / len(distances):.3f}"


def _strongest_links(weights: Sequence[float], count: int = 5) -> list[str]:
    keypoints = round((1 + (1 + 8 * len(weights)) ** 0.5) / 2)  # L = K (K - 1) / 2
    links = sorted(zip(combinations(range(keypoints), 2), weights, strict=True), key=lambda link: -link[1])
    return [f"{i}-{j} ({weight:.2f})" for (i, j), weight in links[:count]]
