"""Text output of evaluations: protocols, occlusion test and skeleton."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from .console import make_table, out, print_table

_MIN_PICTURES_PER_INPUT = 3  # a linear map fitted on fewer pictures per input fits noise

_PROTOCOLS = {
    "headline": ("a map with bias for each keypoint", "error_percent", "mean_pose_percent", "%"),
    "per_keypoint": ("a map without bias for each keypoint (CUB)", "error_percent", "mean_pose_percent", "%"),
    "whole_pose": ("left and right may be swapped (Human3.6m)", "error_percent", "mean_pose_percent", "%"),
    "summed": ("sum over all keypoints at 256 pixels (Taichi)", "summed_error", "mean_pose_summed_error", "px"),
}
_SKELETON_MATCHES = {
    "geometric": "a link lies along true limbs, in every picture",
    "matched": "a link joins matched joints that few limbs lie between",
}


def show_scores(scores: Mapping[str, Any]) -> None:
    """Print the error by each protocol, beside that of guessing the mean pose."""
    if "reason" in scores:
        out.print(f"  the labels could not be scored: {escape(str(scores['reason']))}")
        return
    split = "as the labels say" if scores.get("split_from") == "labels" else "a fifth, by a hash of the names"
    out.print(
        f"  {scores['labelled_keypoints']} labelled keypoints, {scores['train_images']} pictures to fit the maps, "
        f"{scores['heldout_images']} held out ({split})"
    )
    table = make_table("protocol", "error", "mean pose", "description")
    for name, (description, error, mean_pose, unit) in _PROTOCOLS.items():
        if name in scores:
            numbers = scores[name]
            table.add_row(name, f"{numbers[error]:.2f} {unit}", f"{numbers[mean_pose]:.2f} {unit}", description)
    print_table(table)
    fitted, inputs = scores.get("fewest_fitted"), scores.get("map_inputs")  # old versions lack them
    if fitted and inputs and fitted < _MIN_PICTURES_PER_INPUT * inputs:
        out.print(
            f"  [yellow]a map has {inputs} inputs but was fitted on {fitted} pictures for the keypoint with the "
            f"fewest: these errors say little; label at least {_MIN_PICTURES_PER_INPUT * inputs} pictures[/]"
        )
    if "whole_pose_left_out" in scores:
        out.print(f"  whole_pose is left out: {escape(str(scores['whole_pose_left_out']))}")


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Print all parts of an evaluation of a version on labelled pictures."""
    category, version, images = evaluation["category"], evaluation["version"], evaluation["images"]
    out.print(f"category {category}, version {version}: {images} pictures")
    for item in evaluation["skipped_files"]:
        out.print(f"  could not be read: {escape(item['name'])}: {escape(item['reason'])}")
    show_scores(evaluation["scores"])
    if "occlusion" in evaluation:
        _show_occlusion(evaluation["occlusion"]["rows"])
    if "skeleton" in evaluation:
        _show_skeleton(evaluation["skeleton"])


def _show_occlusion(rows: list[Mapping[str, Any]]) -> None:
    steps = len(rows[0]["errors"])
    table = make_table("hidden", "level", "unrefined", *(f"{step} x refined" for step in range(1, steps)))
    for row in rows:
        table.add_row(row["kind"], f"{row['level']:g}", *(f"{error:.2f} %" for error in row["errors"]))
    print_table(table)
    out.print("random: share of 16 x 16 patches hidden; centre: side of the hidden square in such patches")


def _show_skeleton(scores: Mapping[str, Any]) -> None:
    table = make_table("skeleton", "precision", "by chance", "recall", "a correct link")
    for match, description in _SKELETON_MATCHES.items():
        numbers = scores[match]
        shares = (numbers["precision"], numbers["chance_precision"], numbers["recall"])
        table.add_row(match, *(f"{100 * share:.0f} %" for share in shares), description)
    print_table(table)
    out.print(f"of {len(scores['strong_links'])} strong links; by chance: if all links were equal")
    distances = scores["procrustes"]
    parts = [f"mapped {distances['mapped']['distance']:.3f}"]
    if "matched" in distances:
        parts.append(f"matched {distances['matched']['distance']:.3f} ({distances['matched_keypoints']} keypoints)")
    if distances["typical"] is not None:
        parts.append(f"a true pose {distances['typical']:.3f}")
    out.print(f"Procrustes distance to the mean true pose (0 equal, 1 unrelated): {', '.join(parts)}")
