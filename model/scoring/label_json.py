"""Labels from COCO keypoints JSON and from the JSON of our samples; told in :mod:`model.scoring.label_files`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .labels import SPLITS, Labels, LabelsError, check_extent, check_not_normalised, plain_size

_BEYOND = 1e9  # a coordinate that is none


def read_coco(content: dict[str, Any]) -> Labels:
    """The labels of a COCO keypoints file.

    Crowds, annotations of other categories, such as boxes, and those without a labelled keypoint are passed over.

    Raises:
        LabelsError: a key is missing, an image is unknown or has two annotations, or a list has the wrong length.
    """
    joints, edges, category = _coco_category(content)
    images = {}
    for image in _list(content, "images"):
        name = _text(image, "file_name", "an image")
        key = _key(image, "id", f"image '{name}'")
        if key in images:
            raise LabelsError(f"two images have the id {key}")
        images[key] = image
    named: dict[str, Any] = {}
    poses: list[Sequence[Any]] = []
    for annotation in _list(content, "annotations"):
        if category is not None and annotation.get("category_id", category) != category:
            continue
        points = _field(annotation, "keypoints", list, "an annotation")
        if annotation.get("iscrowd") or not any(points[2::3]):
            continue
        key = _key(annotation, "image_id", "an annotation")
        if key not in images:
            raise LabelsError(f"an annotation is of image {key}, which is not among the {len(images)} images")
        name = images[key]["file_name"]
        if len(points) != 3 * len(joints):
            raise LabelsError(f"'{name}' has {len(points)} numbers; expected x, y, v of {len(joints)} keypoints")
        if name in named:
            raise LabelsError(f"'{name}' has two annotations; expected one labelled animal or person a picture")
        named[name] = images[key]
        poses.append(points)
        check_extent(len(poses), len(joints))
    if not poses:
        raise LabelsError("no annotation has a labelled keypoint")
    values = _numbers(poses, list(named)).reshape(len(poses), len(joints), 3)
    visibility = (values[..., 2] > 0).astype(np.uint8)
    keypoints = np.where(visibility[..., None] > 0, values[..., :2], 0.0)
    check_not_normalised(keypoints, visibility)
    sizes = [
        plain_size(name, *(_number(image, side, name) for side in ("width", "height"))) for name, image in named.items()
    ]
    return Labels(
        tuple(named),
        joints,
        keypoints,
        visibility,
        _coco_split(named),
        np.array(sizes, dtype=np.int64),
        edges,
    )


def read_samples(content: dict[str, Any]) -> Labels:
    """The labels of a file like that of our samples.

    Raises:
        LabelsError: a key is missing, or a list has the wrong length.
    """
    joints = _sample_joints(content)
    names: list[str] = []
    split: list[str] = []
    poses: list[Any] = []
    seen: list[Any] = []
    for part in (key for key in SPLITS if key in content):
        for name, label in _field(content, part, dict, "the file").items():
            if not isinstance(label, dict):
                raise LabelsError(f"'{name}' is not an object; expected keypoints and visibility")
            poses.append(_flat_pairs(_field(label, "keypoints", list, name), len(joints), name))
            seen.append(_field(label, "visibility", list, name))
            if len(seen[-1]) != len(joints):
                raise LabelsError(f"'{name}' has {len(seen[-1])} visibilities; expected {len(joints)}")
            names.append(name)
            split.append(SPLITS[part])
            check_extent(len(names), len(joints))
    if not names:
        raise LabelsError("the labels hold no picture")
    if len(set(zip(names, split, strict=True))) < len(names):
        raise LabelsError("a picture is in 'test' and in 'heldout', which say the same")
    keypoints = _numbers(poses, names).reshape(len(names), len(joints), 2)
    visibility = (_numbers(seen, names) > 0).astype(np.uint8)
    keypoints[visibility == 0] = 0
    worst = np.abs(keypoints - 0.5).max(axis=(1, 2))
    if worst.max() > 1.5:
        raise LabelsError(f"'{names[int(worst.argmax())]}' has a keypoint far outside of [0, 1] of the square")
    edges = _edges(content.get("edges") or [], len(joints), first=0)
    return Labels(tuple(names), joints, keypoints, visibility, tuple(split), None, edges, in_square=True)


def _sample_joints(content: dict[str, Any]) -> tuple[str, ...]:
    if "keypoint_names" in content:
        return _names(_list(content, "keypoint_names"))
    labels = [label for part in SPLITS if part in content for label in _field(content, part, dict, "the file").values()]
    first = labels[0] if labels and isinstance(labels[0], dict) else {}
    return _names([f"keypoint_{joint}" for joint in range(len(_field(first, "keypoints", list, "the first picture")))])


def _coco_category(content: dict[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...], Any]:
    """Names, skeleton and id of the category that has keypoints; the id is None where the file gives none."""
    categories = [entry for entry in _list(content, "categories") if isinstance(entry, dict) and entry.get("keypoints")]
    if len(categories) != 1:
        raise LabelsError(f"{len(categories)} categories name keypoints; expected one")
    joints = _names(_field(categories[0], "keypoints", list, "the category"))
    return joints, _edges(categories[0].get("skeleton") or [], len(joints), first=1), categories[0].get("id")


def _coco_split(images: dict[str, Any]) -> tuple[str, ...] | None:
    said = {name: str(image["split"]).lower() for name, image in images.items() if image.get("split")}
    if not said:
        return None
    lacking = [name for name in images if SPLITS.get(said.get(name, "")) is None]
    if lacking:
        raise LabelsError(f"'{lacking[0]}' is of split '{said.get(lacking[0], '')[:40]}'; expected train or test")
    return tuple(SPLITS[said[name]] for name in images)


def _names(values: Sequence[Any]) -> tuple[str, ...]:
    names = tuple(str(value)[:200] for value in values)
    if not names or len(set(names)) < len(names):
        raise LabelsError(f"{len(names)} keypoint names, {len(set(names))} of them different; expected unique names")
    check_extent(1, len(names))
    return names


def _edges(values: Any, joints: int, first: int) -> tuple[tuple[int, int], ...]:
    edges = []
    for pair in values if isinstance(values, list) else [values]:
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair)
        if not whole or not all(0 <= end - first < joints for end in pair):
            raise LabelsError(
                f"the skeleton holds {str(pair)[:40]}; expected pairs from {first} to {joints - 1 + first}"
            )
        edges.append((pair[0] - first, pair[1] - first))
    return tuple(edges)


def _flat_pairs(points: list[Any], joints: int, name: str) -> list[Any]:
    if len(points) != joints or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise LabelsError(f"'{name}' has other keypoints than {joints} pairs [x, y]")
    return [value for point in points for value in point]


def _numbers(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> NDArray[np.float64]:
    for name, row in zip(names, rows, strict=True):
        for value in row:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _BEYOND:
                raise LabelsError(f"'{name}' holds {str(value)[:40]!r}; expected finite numbers")
    return np.array(rows, dtype=np.float64)


def _list(content: dict[str, Any], key: str) -> list[Any]:
    values: list[Any] = _field(content, key, list, "the file")
    if key != "keypoint_names" and not all(isinstance(value, dict) for value in values):
        raise LabelsError(f"'{key}' holds something else than objects")
    return values


def _field(holder: dict[str, Any], key: str, kind: type[Any], whose: str) -> Any:
    value = holder.get(key)
    if not isinstance(value, kind):
        raise LabelsError(f"{whose} has no '{key}' that is a {'list' if kind is list else 'mapping'}")
    return value


def _text(holder: dict[str, Any], key: str, whose: str) -> str:
    value = holder.get(key)
    if not isinstance(value, str) or not value:
        raise LabelsError(f"{whose} has no '{key}' that is a text")
    return value


def _key(holder: dict[str, Any], key: str, whose: str) -> int | str:
    value = holder.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise LabelsError(f"{whose} has no '{key}' that is a number or a text")
    return value


def _number(holder: dict[str, Any], key: str, whose: str) -> float:
    value = holder.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _BEYOND:
        raise LabelsError(f"'{whose}' has no '{key}' that is a number")
    return float(value)
