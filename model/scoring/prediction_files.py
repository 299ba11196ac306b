"""Read predicted keypoints and pair them with labels by the pictures' names. Numpy only.

A **predictions** file is JSON. Keypoints are (x, y) in [0, 1] of the model's square, by the picture's file name:

- ``{"train": {name: [[x, y], …]}, "heldout": {…}}``, or ``{"pictures": {name: …}}``, split as the labels are or else
  by the names (:func:`model.scoring.labels.hashed_split`);
- ``"clips": {name: clip}`` (optional), if pictures are frames of clips: whole clips are then held out;
- ``"sizes": {name: [width, height]}`` in pixels, if the labels are in pixels and have no sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .labels import Labels, LabelsError, hashed_split
from .linear_maps import Array, Split

_SPLITS = {"train": "train", "heldout": "test"}  # name in predictions: name in labels


@dataclass(frozen=True)
class Paired:
    """Predictions and labels of the same pictures, by split ("train" and "heldout").

    Pictures without a label, and labels without a prediction, are not scored. The split is from the "predictions", the
    "labels" or the "names".
    """

    names: dict[str, list[str]]
    splits: dict[str, Split]
    unlabelled: tuple[str, ...]
    unpredicted: tuple[str, ...]
    split_from: str


def read_predictions(path: Path) -> dict[str, Any]:
    """Return the content of a predictions file: objects by picture name; "heldout" may be a list of names alone."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    for part in ("pictures", *_SPLITS, "sizes", "clips"):
        value = content.get(part) or {}
        is_names = part == "heldout" and isinstance(value, list) and all(isinstance(name, str) for name in value)
        if not isinstance(value, dict) and not is_names:
            raise ValueError(f"'{part}' in {path.name} is a {type(value).__name__}; expected an object by picture name")
    return content


def pair(predictions: Mapping[str, Any], labels: Labels) -> Paired:
    """Pair the content of a predictions file with labels, which may also be of other pictures.

    Raises ValueError if a name matches two labels, a size is unknown, or a split would be empty.
    """
    rows = rows_by_split(predictions, labels)
    split_from = "predictions" if "pictures" not in predictions else "labels" if labels.split else "names"
    splits = {
        split: (
            poses_of(predictions.get(split) or predictions["pictures"], list(group)),
            *square_labels(labels, group, predictions.get("sizes") or {}),
        )
        for split, group in rows.items()
    }
    unlabelled = tuple(
        name
        for split in (["pictures"] if "pictures" in predictions else _SPLITS)
        for name in predictions[split]
        if name not in rows.get(split, rows["train"] | rows["heldout"])
    )
    used = {row for group in rows.values() for row in group.values()}
    unpredicted = tuple(name for row, name in enumerate(labels.names) if row not in used)
    return Paired({split: list(group) for split, group in rows.items()}, splits, unlabelled, unpredicted, split_from)


def square_labels(labels: Labels, rows: Mapping[str, int], sizes: Mapping[str, Any]) -> tuple[Array, Array]:
    """Return labels (N, J, 2) in [0, 1] of the square and visibility (N, J) of pictures.

    Rows of the labels, and [width, height] in pixels, are by the picture's name.
    """
    known = {labels.names[row]: _size(name, sizes[name]) for name, row in rows.items() if name in sizes}
    chosen = labels.rows(list(rows.values())).to_square(known)
    return chosen.keypoints, chosen.visibility.astype(np.float64)


def poses_of(poses: Mapping[str, Any], names: Sequence[str]) -> Array:
    """Return the predicted poses of some pictures as one array (N, …, 2). Raises ValueError if they are not alike."""
    try:
        stacked = np.array([poses[name] for name in names], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the predicted keypoints differ in shape or are not numbers: {error}") from error
    if stacked.ndim < 3 or stacked.shape[-1] != 2:
        raise ValueError(f"predicted keypoints have shape {stacked.shape[1:]}; expected (K, 2) a picture")
    return stacked


def rows_by_split(predictions: Mapping[str, Any], labels: Labels) -> dict[str, dict[str, int]]:
    """Return, for "train" and "heldout", the row of the labels of each predicted picture that has one.

    Raises LabelsError if a name matches two labels, or no picture of a split has a label.
    """
    lacking = [split for split in _SPLITS if split not in predictions]
    if "pictures" not in predictions and lacking:
        raise ValueError(f"the predictions have no '{lacking[0]}'; expected pictures, or train and heldout")
    if "pictures" in predictions:
        row_of = _match(labels, list(predictions["pictures"]))
        clips = [(predictions.get("clips") or {}).get(name, name) for name in row_of]
        parts = [labels.split[row] for row in row_of.values()] if labels.split else hashed_split([*row_of], clips=clips)
        rows: dict[str, dict[str, int]] = {split: {} for split in _SPLITS}
        for (name, row), part in zip(row_of.items(), parts, strict=True):
            rows["train" if part == "train" else "heldout"][name] = row
    else:
        rows = {}
        for split, part in _SPLITS.items():
            candidates = [row for row in range(len(labels)) if labels.split is None or labels.split[row] == part]
            row_of = _match(labels.rows(candidates), list(predictions[split]))
            rows[split] = {name: candidates[row] for name, row in row_of.items()}
    empty = [split for split, group in rows.items() if not group]
    if empty:
        why = ", and all are of one clip; give a split" if predictions.get("clips") and not labels.split else ""
        raise LabelsError(f"no labelled picture is in '{empty[0]}'; expected some to fit on and others to score{why}")
    return rows


def _match(labels: Labels, names: list[str]) -> dict[str, int]:
    return {name: int(row) for name, row in zip(names, labels.match(names), strict=True) if row >= 0}


def _size(name: str, size: Any) -> tuple[int, int]:
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"the size of '{name}' is {str(size)[:40]}; expected [width, height] in pixels")
    return size[0], size[1]
