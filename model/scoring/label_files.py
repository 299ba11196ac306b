"""Read labels from CSV, COCO keypoints JSON or the JSON of our samples; the form is recognised by the content.

**CSV**, one row per keypoint, with a header; columns in any order:

- ``image``: the picture's file name as in the archive; its folders may be left out if names stay unique,
- ``keypoint``: the keypoint's name,
- ``x``, ``y``: pixels of the picture with its EXIF orientation applied, integers at pixel centres,
- ``visible`` (optional): 0 or 1; if 0, x and y may be empty. A keypoint without a row is not visible,
- ``split`` (optional): ``train`` or ``test`` (``heldout`` means the same), the same in all rows of a picture,
- ``width``, ``height`` (optional): the picture's size in pixels, for readers that do not have the picture.

**COCO**: ``images`` (``file_name``, ``width``, ``height`` and optionally ``split``), ``annotations`` with
``keypoints`` [x, y, v, …], one per picture; ``categories`` with ``keypoints`` and ``skeleton``, counted from 1.
Coordinates are pixels, integers at pixel centres; v > 0 counts, as in COCO's own score.

**Samples**: ``keypoint_names`` and ``edges`` (both optional, edges counted from 0), ``train`` and ``heldout``: by
file name ``keypoints`` [x, y] in [0, 1] of the model's square, and ``visibility``.

Other keys and columns are ignored.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .labels import SPLITS, Labels, LabelsError, check_extent, check_in_pixels, check_size

MAX_BYTES = 64 * 2**20
_MAX_COORDINATE = 1e9
_COLUMNS = ("image", "keypoint", "x", "y")  # required
_VISIBLE = {"1": True, "true": True, "yes": True, "2": True, "0": False, "false": False, "no": False, "": True}
_VISIBLE |= {"1.0": True, "2.0": True, "0.0": False}  # whole numbers in a table that has empty cells


def read_labels(path: Path, max_bytes: int = MAX_BYTES) -> Labels:
    """Return the labels in a file; its name does not matter.

    Raises LabelsError if the file is too large, and then unread, or empty, of another form, or damaged.
    """
    if (size := path.stat().st_size) > max_bytes:
        raise LabelsError(f"the labels file has {size} bytes; at most {max_bytes} are allowed")
    return parse_labels(path.read_bytes())


def parse_labels(data: bytes) -> Labels:
    """Return the labels in a file's bytes. Raises LabelsError."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelsError(f"the labels file is not UTF-8 text (byte {error.start}); expected CSV or JSON") from error
    if not text.strip():
        raise LabelsError("the labels file is empty; expected CSV with a header, or JSON")
    if text.lstrip()[0] not in "{[":
        return _read_csv(text)
    content = _parse_json(text)
    if "annotations" in content:
        return _read_coco(content)
    if any(part in content for part in SPLITS):
        return _read_samples(content)
    keys = ", ".join(sorted(key[:40] for key in content)[:8]) or "none"
    raise LabelsError(
        f"the labels are JSON with the keys {keys}; expected COCO's images, annotations and categories, "
        "or keypoint_names, train and heldout"
    )


def _parse_json(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise LabelsError(f"the labels hold {constant}; expected finite numbers")

    try:
        content = json.loads(text, parse_constant=refuse)
    except LabelsError:
        raise
    except (ValueError, RecursionError) as error:
        raise LabelsError(f"the labels are not JSON: {str(error)[:200] or 'nested too deeply'}") from error
    if not isinstance(content, dict):
        raise LabelsError("the labels are a JSON list; expected an object of COCO, or keypoint_names, train, heldout")
    return content


@dataclass
class _Table:
    """The rows of a CSV file: numbers of pictures and keypoints by name, and what is given for them."""

    pictures: dict[str, int] = field(default_factory=dict)
    joints: dict[str, int] = field(default_factory=dict)
    points: dict[tuple[int, int], tuple[float, float, bool]] = field(default_factory=dict)  # by picture and keypoint
    splits: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


def _read_csv(text: str) -> Labels:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    table = _Table()
    try:
        reader.fieldnames = _check_header([str(name).strip().lower() for name in reader.fieldnames or ()])
        for row in reader:
            try:
                _add_row(row, table)
            except LabelsError as error:
                raise LabelsError(f"line {reader.line_num}: {error}") from None
    except csv.Error as error:
        raise LabelsError(f"line {reader.line_num} is not CSV: {error}") from error
    names = tuple(table.pictures)
    if not names:
        raise LabelsError("the labels have a header and no row; expected one row per keypoint")
    keypoints = np.zeros((len(names), len(table.joints), 2))
    visibility = np.zeros((len(names), len(table.joints)), dtype=np.uint8)
    for place, (x, y, visible) in table.points.items():
        keypoints[place], visibility[place] = (x, y), visible
    for what, given in (("split", table.splits), ("width and height", table.sizes)):
        lacking = [name for name in names if name not in given]
        if given and lacking:
            raise LabelsError(f"{len(lacking)} of {len(names)} pictures have no {what}, such as '{lacking[0]}'")
    check_in_pixels(keypoints, visibility)
    splits = tuple(table.splits[name] for name in names) if table.splits else None
    sizes = np.array([table.sizes[name] for name in names], dtype=np.int64) if table.sizes else None
    return Labels(names, tuple(table.joints), keypoints, visibility, splits, sizes)


def _check_header(header: list[str]) -> list[str]:
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise LabelsError(
            f"the header is '{', '.join(header)[:120]}', without {', '.join(missing)}; expected the columns image, "
            "keypoint, x, y and optionally visible, split, width, height, separated by commas"
        )
    if len(set(header)) < len(header):
        raise LabelsError(f"the header '{', '.join(header)[:120]}' names a column twice")
    return header


def _add_row(row: dict[str, str | None], table: _Table) -> None:
    if None in row or any(value is None for value in row.values()):
        raise LabelsError(f"has more or fewer fields than the header's {len(row) - (None in row)}")
    cells = {name: (value or "").strip() for name, value in row.items()}
    name, joint_name = cells["image"], cells["keypoint"]
    if not name or not joint_name:
        raise LabelsError("image or keypoint is empty")
    place = (
        table.pictures.setdefault(name, len(table.pictures)),
        table.joints.setdefault(joint_name, len(table.joints)),
    )
    check_extent(len(table.pictures), len(table.joints))
    if place in table.points:
        raise LabelsError(f"'{joint_name}' of '{name}' is there twice")
    visible = _VISIBLE.get(cells.get("visible", "1").lower())
    if visible is None:
        raise LabelsError(f"visible is '{cells['visible'][:40]}'; expected 0 or 1")
    x, y = (_parse_number(axis, cells[axis]) if visible else 0.0 for axis in "xy")
    table.points[place] = x, y, visible
    if cells.get("split"):
        split = SPLITS.get(cells["split"].lower())
        if split is None:
            raise LabelsError(f"split is '{cells['split'][:40]}'; expected train or test")
        if table.splits.setdefault(name, split) != split:
            raise LabelsError(f"'{name}' is of split {split} here and of {table.splits[name]} above")
    if cells.get("width") or cells.get("height"):
        size = check_size(name, *(_parse_number(side, cells.get(side, "")) for side in ("width", "height")))
        if table.sizes.setdefault(name, size) != size:
            raise LabelsError(f"'{name}' has {size} pixels here and {table.sizes[name]} above")


def _parse_number(column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LabelsError(f"{column} is '{text[:40]}'; expected a finite number")
    return value


def _read_coco(content: dict[str, Any]) -> Labels:
    """Read COCO keypoints, ignoring crowds, annotations of other categories and those without a labelled keypoint."""
    categories = [entry for entry in _get_objects(content, "categories") if entry.get("keypoints")]
    if len(categories) != 1:
        raise LabelsError(f"{len(categories)} categories name keypoints; expected one")
    joints, category = _check_names(_get(categories[0], "keypoints", list, "the category")), categories[0].get("id")
    edges = _read_edges(categories[0].get("skeleton") or [], len(joints), first=1)
    images = {}
    for image in _get_objects(content, "images"):
        name = _get(image, "file_name", str, "an image")
        key = _get(image, "id", (int, str), f"image '{name}'")
        if key in images:
            raise LabelsError(f"two images have the id {key}")
        images[key] = image
    annotated: dict[str, Any] = {}
    poses: list[Sequence[Any]] = []
    for annotation in _get_objects(content, "annotations"):
        if category is not None and annotation.get("category_id", category) != category:
            continue
        points = _get(annotation, "keypoints", list, "an annotation")
        if annotation.get("iscrowd") or not any(points[2::3]):
            continue
        key = _get(annotation, "image_id", (int, str), "an annotation")
        if key not in images:
            raise LabelsError(f"an annotation is of image {key}, which is not among the {len(images)} images")
        name = images[key]["file_name"]
        if len(points) != 3 * len(joints):
            raise LabelsError(f"'{name}' has {len(points)} numbers; expected x, y, v of {len(joints)} keypoints")
        if name in annotated:
            raise LabelsError(f"'{name}' has two annotations; expected one labelled animal or person a picture")
        annotated[name] = images[key]
        poses.append(points)
        check_extent(len(poses), len(joints))
    if not poses:
        raise LabelsError("no annotation has a labelled keypoint")
    values = _to_array(poses, list(annotated)).reshape(len(poses), len(joints), 3)
    visibility = (values[..., 2] > 0).astype(np.uint8)
    keypoints = np.where(visibility[..., None] > 0, values[..., :2], 0.0)
    check_in_pixels(keypoints, visibility)
    sizes = []
    for name, image in annotated.items():
        width, height = (_get(image, side, (int, float), f"'{name}'") for side in ("width", "height"))
        sizes.append(check_size(name, width, height))
    split = _read_coco_split(annotated)
    return Labels(tuple(annotated), joints, keypoints, visibility, split, np.array(sizes, dtype=np.int64), edges)


def _read_coco_split(images: dict[str, Any]) -> tuple[str, ...] | None:
    given = {name: str(image["split"]).lower() for name, image in images.items() if image.get("split")}
    if not given:
        return None
    for name in images:
        if given.get(name) not in SPLITS:
            raise LabelsError(f"'{name}' is of split '{given.get(name, '')[:40]}'; expected train or test")
    return tuple(SPLITS[given[name]] for name in images)


def _read_samples(content: dict[str, Any]) -> Labels:
    parts = {part: _get(content, part, dict, "the file") for part in SPLITS if part in content}
    entries = [(name, part, label) for part, labels in parts.items() for name, label in labels.items()]
    if not entries:
        raise LabelsError("the labels hold no picture")
    if "keypoint_names" in content:
        joints = _check_names(_get(content, "keypoint_names", list, "the file"))
    else:
        first = entries[0][2] if isinstance(entries[0][2], dict) else {}
        points = _get(first, "keypoints", list, "the first picture")
        joints = _check_names([f"keypoint_{joint}" for joint in range(len(points))])
    check_extent(len(entries), len(joints))
    poses, visibilities = [], []
    for name, _, label in entries:
        if not isinstance(label, dict):
            raise LabelsError(f"'{name}' is not an object; expected keypoints and visibility")
        points = _get(label, "keypoints", list, name)
        if len(points) != len(joints) or not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise LabelsError(f"the keypoints of '{name}' are not {len(joints)} pairs [x, y]")
        poses.append([value for point in points for value in point])
        visibilities.append(_get(label, "visibility", list, name))
        if len(visibilities[-1]) != len(joints):
            raise LabelsError(f"'{name}' has {len(visibilities[-1])} visibilities; expected {len(joints)}")
    names, split = tuple(name for name, *_ in entries), tuple(SPLITS[part] for _, part, _ in entries)
    if len(set(zip(names, split, strict=True))) < len(names):
        raise LabelsError("a picture is in 'test' and in 'heldout', which mean the same")
    keypoints = _to_array(poses, names).reshape(len(names), len(joints), 2)
    visibility = (_to_array(visibilities, names) > 0).astype(np.uint8)
    keypoints[visibility == 0] = 0
    worst = np.abs(keypoints - 0.5).max(axis=(1, 2))
    if worst.max() > 1.5:
        raise LabelsError(f"'{names[int(worst.argmax())]}' has a keypoint far outside of [0, 1] of the square")
    edges = _read_edges(content.get("edges") or [], len(joints), first=0)
    return Labels(names, joints, keypoints, visibility, split, None, edges, in_square=True)


def _check_names(values: Sequence[Any]) -> tuple[str, ...]:
    names = tuple(str(value)[:200] for value in values)
    if not names or len(set(names)) < len(names):
        raise LabelsError(f"{len(names)} keypoint names, {len(set(names))} of them different; expected unique names")
    check_extent(1, len(names))
    return names


def _read_edges(values: Any, joints: int, first: int) -> tuple[tuple[int, int], ...]:
    edges = []
    for pair in values if isinstance(values, list) else [values]:
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair)
        if not is_pair or not all(0 <= end - first < joints for end in pair):
            raise LabelsError(
                f"the skeleton holds {str(pair)[:40]}; expected pairs from {first} to {joints - 1 + first}"
            )
        edges.append((pair[0] - first, pair[1] - first))
    return tuple(edges)


def _to_array(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> NDArray[np.float64]:
    for name, row in zip(names, rows, strict=True):
        for value in row:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _MAX_COORDINATE:
                raise LabelsError(f"'{name}' holds {str(value)[:40]!r}; expected finite numbers")
    return np.array(rows, dtype=np.float64)


def _get_objects(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    values: list[Any] = _get(content, key, list, "the file")
    if not all(isinstance(value, dict) for value in values):
        raise LabelsError(f"'{key}' holds something else than objects")
    return values


def _get(holder: dict[str, Any], key: str, kind: type | tuple[type, ...], owner: str) -> Any:
    """Return a required value of a JSON type; texts must not be empty, and numbers not huge."""
    value = holder.get(key)
    is_huge = isinstance(value, (int, float)) and not abs(value) < _MAX_COORDINATE and kind == (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or (kind is str and not value) or is_huge:
        names = {list: "a list", dict: "an object", str: "a text", (int, str): "a number or a text"}
        raise LabelsError(f"{owner} has no '{key}' that is {names.get(kind, 'a number')}")
    return value
