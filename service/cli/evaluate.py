"""``ppl evaluate``: the error of a category's poses on labelled pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .commands import Align, BoxesFile, Category, LabelsFit, Locate, Session, Version, save_pipe
from .console import counting_bar, out, print_path, print_table, say

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


def evaluate(
    session: Session,
    category: Category,
    pictures: Annotated[
        list[Path], typer.Argument(help="Pictures, videos, folders of them, or zips, tars and tar.gz.")
    ],
    labels: Annotated[
        Path, typer.Option(help="Their keypoints: CSV, DeepLabCut, SLEAP, Label Studio, COCO, or as our samples.")
    ],
    boxes: BoxesFile = None,
    locate: Locate = None,
    align: Align = None,
    labels_fit: LabelsFit = None,
    occlusion: Annotated[
        bool, typer.Option("--occlusion", help="Also hide parts of the scored pictures, and refine.")
    ] = False,
    refine_steps: Annotated[
        int | None,
        typer.Option(min=0, max=10, help="Refinement iterations of --occlusion; 3 by default, 0 without a memory."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw the errors of --occlusion (extra 'plots').")
    ] = None,
    skeleton: Annotated[
        bool, typer.Option("--skeleton", help="Also compare the prior with the skeleton that the labels define.")
    ] = False,
    version: Version = None,
) -> None:
    """Score a category's poses on labelled pictures.

    A linear map from all found keypoints to each labelled one is fitted on some of the pictures and scored on the
    others: by the labels' split or, if they have none, on a fifth chosen by a hash of the names.
    """
    from .evaluation import evaluate_category  # the other commands need neither NumPy nor OpenCV

    with counting_bar("estimating poses", quiet=session.as_json) as update:
        found = evaluate_category(
            session.client,
            category,
            [save_pipe(path) for path in pictures],
            save_pipe(labels),
            version,
            boxes=save_pipe(boxes) if boxes else None,
            locate=locate,
            align=align,
            labels_fit=labels_fit or "exact",
            occlusion=occlusion,
            refine_steps=refine_steps,
            plot=plot,
            skeleton=skeleton,
            on_done=lambda done, total: update(completed=done, total=total),
        )
    session.show(found, _print_evaluation)
    if plot and not session.as_json:
        print_path(plot)


def print_scores(scores: Mapping[str, Any]) -> None:
    """Print the error by each protocol, beside that of guessing the mean pose."""
    if "reason" in scores:
        say(f"  the labels could not be scored: {scores['reason']}")
        return
    split = "as the labels say" if scores.get("split_from") == "labels" else "a fifth, by a hash of the names"
    out.print(
        f"  {scores['labelled_keypoints']} labelled keypoints, {scores['train_images']} pictures to fit the maps, "
        f"{scores['heldout_images']} held out ({split})"
    )
    rows = [
        (name, f"{scores[name][error]:.2f} {unit}", f"{scores[name][mean_pose]:.2f} {unit}", description)
        for name, (description, error, mean_pose, unit) in _PROTOCOLS.items()
        if name in scores
    ]
    print_table(("protocol", "error", "mean pose", "description"), rows)
    fitted, inputs = scores.get("fewest_fitted"), scores.get("map_inputs")  # old versions lack them
    if fitted and inputs and fitted < _MIN_PICTURES_PER_INPUT * inputs:
        out.print(
            f"  [yellow]a map has {inputs} inputs but was fitted on {fitted} pictures for the keypoint with the "
            f"fewest: these errors say little; label at least {_MIN_PICTURES_PER_INPUT * inputs} pictures[/]"
        )
    if "whole_pose_left_out" in scores:
        say(f"  whole_pose is left out: {scores['whole_pose_left_out']}")


def _print_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Print all parts of an evaluation of a version on labelled pictures."""
    out.print("category {category}, version {version}: {images} pictures".format(**evaluation))
    for item in evaluation["skipped_files"]:
        say(f"  could not be read: {item['name']}: {item['reason']}")
    unused = {"boxes": evaluation["unused_boxes"], "labels": evaluation["scores"]["unpredicted_labels"]}
    for what, count in unused.items():
        if count:
            say(f"  not used: {what} of {count} pictures or frames that were not evaluated")
    print_scores(evaluation["scores"])
    if "occlusion" in evaluation:
        _print_occlusion(evaluation["occlusion"]["rows"])
    if "skeleton" in evaluation:
        _print_skeleton(evaluation["skeleton"])


def _print_occlusion(rows: list[Mapping[str, Any]]) -> None:
    steps = len(rows[0]["errors"])
    columns = ("hidden", "level", "unrefined", *(f"{step} x refined" for step in range(1, steps)))
    print_table(
        columns, [(row["kind"], f"{row['level']:g}", *(f"{error:.2f} %" for error in row["errors"])) for row in rows]
    )
    out.print("random: share of 16 x 16 patches hidden; centre: side of the hidden square in such patches")


def _print_skeleton(scores: Mapping[str, Any]) -> None:
    rows = []
    for match, description in _SKELETON_MATCHES.items():
        shares = [f"{100 * scores[match][name]:.0f} %" for name in ("precision", "chance_precision", "recall")]
        rows.append((match, *shares, description))
    print_table(("skeleton", "precision", "by chance", "recall", "a correct link"), rows)
    out.print(f"of {len(scores['strong_links'])} strong links; by chance: if all links were equal")
    distances = scores["procrustes"]
    parts = [f"mapped {distances['mapped']['distance']:.3f}"]
    if "matched" in distances:
        parts.append(f"matched {distances['matched']['distance']:.3f} ({distances['matched_keypoints']} keypoints)")
    if distances["typical"] is not None:
        parts.append(f"a true pose {distances['typical']:.3f}")
    out.print(f"Procrustes distance to the mean true pose (0 equal, 1 unrelated): {', '.join(parts)}")
