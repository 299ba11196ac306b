"""What ``ppl evaluate --skeleton`` prints for people: the prior beside the true skeleton."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from . import console as output

_WAYS = {
    "geometric": "a link lies along true limbs, in every picture",
    "matched": "a link joins matched joints that few limbs lie between",
}


def show_skeleton(scores: Mapping[str, Any]) -> None:
    """How well the strong links follow true limbs, and how far the keypoint prior is from the mean true pose."""
    table = Table(box=None, pad_edge=False)
    for column in ("skeleton", "precision", "by chance", "recall", "what is right"):
        table.add_column(column)
    for way, what in _WAYS.items():
        numbers = scores[way]
        shares = (numbers["precision"], numbers["chance_precision"], numbers["recall"])
        table.add_row(way, *(f"{100 * share:.0f} %" for share in shares), what)
    output.tables.print(table)
    output.out.print(f"of {len(scores['strong_links'])} strong links; by chance: all links alike")
    found = scores["procrustes"]
    told = [f"mapped {found['mapped']['distance']:.3f}"]
    if "matched" in found:
        told.append(f"matched {found['matched']['distance']:.3f} ({found['matched_keypoints']} keypoints)")
    if found["typical"] is not None:
        told.append(f"a true pose {found['typical']:.3f}")
    output.out.print(f"Procrustes distance to the mean true pose (0 alike, 1 unrelated): {', '.join(told)}")
