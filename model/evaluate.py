"""How the field scores keypoints learned without labels: a linear map from all learned keypoints of an image
to each labelled one, fitted on training pictures, applied to held-out ones. Numpy only.

``python -m model.evaluate --predictions P.json --labels L.json`` prints the scores as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def fit_maps(keypoints: Array, labels: Array, visibility: Array, *, bias: bool = True) -> Array:
    """One linear map a labelled keypoint, fitted on the pictures where it is visible.

    Args:
        keypoints: (N, K, 2) learned keypoints in [0, 1] of the image side (a map without bias depends on that).
        labels: (N, J, 2) in [0, 1].
        visibility: (N, J), non-zero where the label counts.
        bias: add a constant to the learned coordinates.

    Returns:
        (J, 2K [+ 1], 2).

    Raises:
        ValueError: a labelled keypoint is visible in no picture, or shapes do not fit.
    """
    _check(keypoints, labels, visibility)
    inputs = _design(keypoints, bias)
    maps = []
    for joint in range(labels.shape[1]):
        seen = visibility[:, joint] > 0
        if not seen.any():
            raise ValueError(f"labelled keypoint {joint} is visible in none of the {len(seen)} training pictures")
        maps.append(np.linalg.lstsq(inputs[seen], labels[seen, joint], rcond=None)[0])
    return np.stack(maps)


def apply_maps(keypoints: Array, maps: Array) -> Array:
    """Learned keypoints (N, K, 2) through maps (J, 2K [+ 1], 2) to labelled ones (N, J, 2)."""
    bias = maps.shape[1] % 2 == 1
    mapped: Array = np.einsum("nd,jdc->njc", _design(keypoints, bias), maps)
    return mapped


def error_percent(predicted: Array, labels: Array, visibility: Array) -> float:
    """Mean L2 distance over the visible keypoints (N, J, 2) in [0, 1], in percent of the image side."""
    _check(predicted, labels, visibility)
    distance = np.linalg.norm(predicted - labels, axis=-1)
    return float(100 * distance[visibility > 0].mean())


def mean_pose_percent(train_labels: Array, train_visibility: Array, labels: Array, visibility: Array) -> float:
    """The error of guessing every keypoint at its mean training position: what a model must beat."""
    weight = (train_visibility > 0)[..., None]
    mean = (train_labels * weight).sum(0) / weight.sum(0).clip(1)
    return error_percent(np.broadcast_to(mean, labels.shape), labels, visibility)


def headline(train: tuple[Array, Array, Array], heldout: tuple[Array, Array, Array]) -> dict[str, float]:
    """The project's own headline: maps with bias from ``train``, mean error on ``heldout``.

    Args:
        train: learned keypoints (N, K, 2), labels (N, J, 2), visibility (N, J); coordinates in [0, 1].
        heldout: the same of other pictures.

    Returns:
        "error_percent" and "mean_pose_percent", both of the image side.
    """
    maps = fit_maps(*train)
    return {
        "error_percent": error_percent(apply_maps(heldout[0], maps), heldout[1], heldout[2]),
        "mean_pose_percent": mean_pose_percent(train[1], train[2], heldout[1], heldout[2]),
    }


def _design(keypoints: Array, bias: bool) -> Array:
    flat = keypoints.reshape(len(keypoints), -1)
    return np.concatenate((flat, np.ones((len(flat), 1))), axis=1) if bias else flat


def _check(keypoints: Array, labels: Array, visibility: Array) -> None:
    if keypoints.ndim != 3 or keypoints.shape[-1] != 2 or labels.shape != (*visibility.shape, 2):
        raise ValueError(
            f"keypoints {keypoints.shape}, labels {labels.shape}, visibility {visibility.shape}; "
            "expected (N, K, 2), (N, J, 2), (N, J)"
        )
    if len(keypoints) != len(labels):
        raise ValueError(f"{len(keypoints)} pictures have keypoints and {len(labels)} have labels")


def _paired(predictions: dict[str, Any], labels: dict[str, Any]) -> tuple[Array, Array, Array]:
    names = sorted(predictions)
    missing = [name for name in names if name not in labels]
    if missing or not names:
        raise ValueError(f"{len(missing)} of {len(names)} predicted pictures have no label, the first: {missing[:1]}")
    unseen = sorted(labels.keys() - predictions.keys())
    if unseen:  # a score over some of the pictures would not be the set's
        raise ValueError(f"{len(unseen)} of {len(labels)} labelled pictures have no prediction, the first: {unseen[0]}")
    return (
        np.array([predictions[name] for name in names], dtype=np.float64),
        np.array([labels[name]["keypoints"] for name in names], dtype=np.float64),
        np.array([labels[name]["visibility"] for name in names], dtype=np.float64),
    )


def main(arguments: list[str] | None = None) -> int:
    """Score a predictions file against a labels file; both have "train" and "heldout" by file name."""
    parser = argparse.ArgumentParser(prog="python -m model.evaluate", description=main.__doc__)
    parser.add_argument("--predictions", type=Path, required=True, help="JSON: split: {name: [[x, y], …] in [0, 1]}")
    parser.add_argument("--labels", type=Path, required=True, help="JSON: split: {name: {keypoints, visibility}}")
    options = parser.parse_args(arguments)
    try:
        predictions = json.loads(options.predictions.read_text())
        labels = json.loads(options.labels.read_text())
        scores: dict[str, Any] = dict(
            headline(*(_paired(predictions[split], labels[split]) for split in ("train", "heldout")))
        )
    except (OSError, ValueError, KeyError) as error:
        print(f"can't score: {error}", file=sys.stderr)
        return 2
    scores["train_images"] = len(predictions["train"])
    scores["heldout_images"] = len(predictions["heldout"])
    print(json.dumps(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
