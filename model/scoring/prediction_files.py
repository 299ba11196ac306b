"""Predicted keypoints beside their labels, by the pictures' names. Numpy only.

A **predictions** file is JSON. Keypoints are (x, y) in [0, 1] of the model's square, by the picture's file name:

- ``{"train": {name: [[x, y], …]}, "heldout": {…}}``, or ``{"pictures": {name: …}}``, which is split as the labels
  say and, where they don't, by the names (:func:`model.scoring.labels.hashed_split`);
- ``"clips": {name: clip}``, where pictures are frames of clips: whole ones are held out then;
- ``"sizes": {name: [width, height]}`` in pixels, where the labels are in pixels and don't tell.
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

_SPLITS = {"train": "train", "heldout": "test"}  # as predictions and as labels call them
Sizes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Paired:
    """Predictions and labels of the same pictures.

    Attributes:
        names: the pictures' names, by split ("train" and "heldout").
        splits: learned keypoints, labels and visibility of these, by split.
        unlabelled: pictures that are predicted and have no label; they don't count.
        unpredicted: labels whose picture is not predicted; they don't count.
        split_from: who split the pictures: "predictions", "labels" or "names".
    """

    names: dict[str, list[str]]
    splits: dict[str, Split]
    unlabelled: tuple[str, ...]
    unpredicted: tuple[str, ...]
    split_from: str


def read_predictions(path: Path) -> dict[str, Any]:
    """A predictions file as it is. Of the pictures held out it may have the names alone.

    Raises:
        ValueError: it is no JSON object, or holds something else than poses and sizes by name.
        OSError: it can't be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    for part in ("pictures", *_SPLITS, "sizes", "clips"):
        value = content.get(part) or {}
        names = part == "heldout" and isinstance(value, list) and all(isinstance(name, str) for name in value)
        if not isinstance(value, dict) and not names:
            raise ValueError(f"'{part}' in {path.name} is a {type(value).__name__}; expected an object by picture name")
    return content


def pair(predictions: Mapping[str, Any], labels: Labels) -> Paired:
    """The pictures that have both; see :class:`Paired`.

    Args:
        predictions: the content of a predictions file.
        labels: of these pictures, and perhaps of others.

    Raises:
        ValueError: a name fits no or two labels, a size is unknown, or a split would be empty.
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
    groups = [predictions["pictures"]] if "pictures" in predictions else [predictions[split] for split in _SPLITS]
    named = [set(group) for group in (rows.values() if len(groups) > 1 else [rows["train"] | rows["heldout"]])]
    unlabelled = tuple(name for group, known in zip(groups, named, strict=True) for name in group if name not in known)
    used = {row for group in rows.values() for row in group.values()}
    unpredicted = tuple(name for row, name in enumerate(labels.names) if row not in used)
    return Paired({split: list(group) for split, group in rows.items()}, splits, unlabelled, unpredicted, split_from)


def square_labels(labels: Labels, rows: Mapping[str, int], sizes: Mapping[str, Any]) -> tuple[Array, Array]:
    """Labels (N, J, 2) in [0, 1] of the square and visibility (N, J) of pictures, by name and row of the labels."""
    known = {labels.names[row]: _size(name, sizes[name]) for name, row in rows.items() if name in sizes}
    chosen = labels.rows(list(rows.values())).to_square(known)
    return chosen.keypoints, chosen.visibility.astype(np.float64)


def poses_of(poses: Mapping[str, Any], names: Sequence[str]) -> Array:
    """The predicted poses of some pictures as one array (N, …, 2).

    Raises:
        ValueError: they differ in shape, or are no points.
    """
    try:
        stacked = np.array([poses[name] for name in names], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the predicted keypoints differ in shape or are no numbers: {error}") from error
    if stacked.ndim < 3 or stacked.shape[-1] != 2:
        raise ValueError(f"predicted keypoints have shape {stacked.shape[1:]}; expected (K, 2) a picture")
    return stacked


def rows_by_split(predictions: Mapping[str, Any], labels: Labels) -> dict[str, dict[str, int]]:
    """For "train" and "heldout", the row of the labels for each predicted picture that has one.

    Raises:
        LabelsError: a name fits two labels, or no picture of a split has a label.
        ValueError: there are no pictures.
    """
    lacking = [split for split in _SPLITS if split not in predictions]
    if "pictures" not in predictions and lacking:
        raise ValueError(f"the predictions have no '{lacking[0]}'; expected pictures, or train and heldout")
    if "pictures" in predictions:
        found = _found(labels, list(predictions["pictures"]))
        clips = [(predictions.get("clips") or {}).get(name, name) for name in found]
        said = [labels.split[row] for row in found.values()] if labels.split else hashed_split([*found], clips=clips)
        split_of = dict(zip(found, said, strict=True))
        rows = {
            split: {n: row for n, row in found.items() if split_of[n] == called} for split, called in _SPLITS.items()
        }
    else:
        rows = {}
        for split, called in _SPLITS.items():
            mine = [row for row in range(len(labels)) if labels.split is None or labels.split[row] == called]
            found = _found(labels.rows(mine), list(predictions[split]))
            rows[split] = {name: mine[row] for name, row in found.items()}
    empty = [split for split, group in rows.items() if not group]
    if empty:
        why = ", and all are of one clip; give a split" if predictions.get("clips") and not labels.split else ""
        raise LabelsError(
            f"no labelled picture is in '{empty[0]}'; pictures are needed to fit on, and others to score{why}"
        )
    return rows


def _found(labels: Labels, names: list[str]) -> dict[str, int]:
    return {name: int(row) for name, row in zip(names, labels.match(names), strict=True) if row >= 0}


def _size(name: str, size: Any) -> tuple[int, int]:
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"the size of '{name}' is {str(size)[:40]}; expected [width, height] in pixels")
    return size[0], size[1]
