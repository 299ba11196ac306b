"""Labels from CSV; the columns are told in :mod:`model.scoring.label_files`."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field

import numpy as np

from .labels import SPLITS, Labels, LabelsError, check_extent, check_not_normalised, plain_size

_NEEDED = ("image", "keypoint", "x", "y")
_TRUTHS = {"1": True, "true": True, "yes": True, "2": True, "0": False, "false": False, "no": False, "": True}
_TRUTHS |= {"1.0": True, "2.0": True, "0.0": False}  # as a table writes whole numbers once one cell was empty


@dataclass(slots=True)  # there may be a million of them
class _Picture:
    """What the rows of one picture have said so far."""

    points: dict[int, tuple[float, float, bool]] = field(default_factory=dict)
    split: str | None = None
    size: tuple[int, int] | None = None


def read_csv(text: str) -> Labels:
    """The labels of a CSV text.

    Raises:
        LabelsError: a column is missing, a row can't be read, is there twice or contradicts another; with its line.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    pictures: dict[str, _Picture] = {}
    joints: dict[str, int] = {}
    try:
        header = [str(name).strip().lower() for name in reader.fieldnames or ()]
        _check_header(header)
        reader.fieldnames = header
        for row in reader:
            try:
                _take(row, pictures, joints)
            except LabelsError as error:
                raise LabelsError(f"line {reader.line_num}: {error}") from None
    except csv.Error as error:
        raise LabelsError(f"line {reader.line_num} is not CSV: {error}") from error
    if not pictures:
        raise LabelsError("the labels have a header and no row; expected a row a keypoint")
    return _labels(pictures, joints)


def _check_header(header: list[str]) -> None:
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        came = ", ".join(header)[:120]
        raise LabelsError(
            f"the header is '{came}', without {', '.join(missing)}; expected the columns image, keypoint, x, y and "
            "perhaps visible, split, width, height, separated by commas"
        )
    if len(set(header)) < len(header):
        raise LabelsError(f"the header '{', '.join(header)[:120]}' names a column twice")


def _take(row: dict[str, str | None], pictures: dict[str, _Picture], joints: dict[str, int]) -> None:
    if None in row or any(value is None for value in row.values()):
        raise LabelsError(f"has more or fewer fields than the header's {len(row) - (None in row)}")
    cells = {name: (value or "").strip() for name, value in row.items()}
    name, joint_name = cells["image"], cells["keypoint"]
    if not name or not joint_name:
        raise LabelsError("image or keypoint is empty")
    picture = pictures.setdefault(name, _Picture())
    joint = joints.setdefault(joint_name, len(joints))
    check_extent(len(pictures), len(joints))
    if joint in picture.points:
        raise LabelsError(f"'{joint_name}' of '{name}' is there twice")
    visible = _TRUTHS.get(cells.get("visible", "1").lower())
    if visible is None:
        raise LabelsError(f"visible is '{cells['visible'][:40]}'; expected 0 or 1")
    picture.points[joint] = (_number("x", cells["x"]), _number("y", cells["y"]), True) if visible else (0.0, 0.0, False)
    if cells.get("split"):
        split = SPLITS.get(cells["split"].lower())
        if split is None:
            raise LabelsError(f"split is '{cells['split'][:40]}'; expected train or test")
        if picture.split not in (None, split):
            raise LabelsError(f"'{name}' is of split {split} here and of {picture.split} above")
        picture.split = split
    if cells.get("width") or cells.get("height"):
        size = plain_size(name, _number("width", cells.get("width", "")), _number("height", cells.get("height", "")))
        if picture.size not in (None, size):
            raise LabelsError(f"'{name}' has {size} pixels here and {picture.size} above")
        picture.size = size


def _number(column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LabelsError(f"{column} is '{text[:40]}'; expected a finite number")
    return value


def _labels(pictures: dict[str, _Picture], joints: dict[str, int]) -> Labels:
    names = tuple(pictures)
    keypoints = np.zeros((len(names), len(joints), 2))
    visibility = np.zeros((len(names), len(joints)), dtype=np.uint8)
    for index, picture in enumerate(pictures.values()):
        for joint, (x, y, visible) in picture.points.items():
            keypoints[index, joint], visibility[index, joint] = (x, y), visible
    splits = [picture.split for picture in pictures.values()]
    unsplit = [name for name, split in zip(names, splits, strict=True) if split is None]
    if unsplit and len(unsplit) < len(names):
        raise LabelsError(f"{len(unsplit)} of {len(names)} pictures have no split, the first is '{unsplit[0]}'")
    sizes = [picture.size for picture in pictures.values()]
    unsized = [name for name, size in zip(names, sizes, strict=True) if size is None]
    if unsized and len(unsized) < len(names):
        raise LabelsError(f"{len(unsized)} of {len(names)} pictures have no width and height, as '{unsized[0]}'")
    check_not_normalised(keypoints, visibility)
    return Labels(
        names,
        tuple(joints),
        keypoints,
        visibility,
        None if unsplit else tuple(str(split) for split in splits),
        None if unsized else np.array(sizes, dtype=np.int64),
    )
