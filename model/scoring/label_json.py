"""Read labels from JSON: COCO keypoints, Label Studio's tasks, or the form of our samples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from .labels import ONE_ANIMAL, SPLITS, Labels, LabelsError, check_extent, check_in_pixels, check_size, frame_label

_MAX_COORDINATE = 1e9
_PICTURE = re.compile(r"\.(?:jpe?g|png|webp|avif|hei[cf]|bmp|tiff?)(?:$|[?#])", re.IGNORECASE)
_UPLOAD = re.compile(r"(?:^|/)upload/\d+/[0-9a-f]{8}-")  # Label Studio's folder of uploads, and its prefix of names


def read_json(text: str) -> Labels:
    """Read labels from JSON, whose keys show its form. Raises LabelsError."""
    content = _parse_json(text)
    if isinstance(content, dict) and "data" in content and "annotations" in content:  # a single task
        content = [content]
    if isinstance(content, list):
        return _read_label_studio(content)
    if "annotations" in content:
        return _read_coco(content)
    if any(part in content for part in SPLITS):
        return _read_samples(content)
    keys = ", ".join(sorted(key[:40] for key in content)[:8]) or "none"
    raise LabelsError(
        f"the labels are JSON with the keys {keys}; expected COCO's images, annotations and categories, "
        "keypoint_names, train and heldout, or Label Studio's list of tasks"
    )


def _parse_json(text: str) -> dict[str, Any] | list[Any]:
    def parse_constant(constant: str) -> float:
        if constant != "NaN":  # for a keypoint that is not visible
            raise LabelsError(f"the labels hold {constant}; expected finite numbers")
        return float("nan")

    try:
        content = json.loads(text, parse_constant=parse_constant)
    except LabelsError:
        raise
    except (ValueError, RecursionError) as error:
        raise LabelsError(f"the labels are not JSON: {str(error)[:200] or 'nested too deeply'}") from error
    if not isinstance(content, dict | list):
        raise LabelsError(
            "the labels are one JSON value; expected an object of COCO, or a list of Label Studio's tasks"
        )
    return content


def _read_coco(content: dict[str, Any]) -> Labels:
    """Read COCO keypoints, ignoring crowds, annotations of other categories and those without a labelled keypoint."""
    categories = [entry for entry in _get_objects(content, "categories") if entry.get("keypoints")]
    if not categories or any(_get_keypoints(other) != _get_keypoints(categories[0]) for other in categories[1:]):
        raise LabelsError(f"{len(categories)} categories name keypoints; expected one, or several with the same")
    joints, category_ids = (
        _check_names(_get(categories[0], "keypoints", list, "the category")),
        {*map(_get_id, categories)},
    )
    edges = _read_edges(categories[0].get("skeleton") or [], len(joints))
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
        category = annotation.get("category_id")
        is_known = isinstance(category, int | str) and category in category_ids
        if None not in category_ids and "category_id" in annotation and not is_known:
            continue
        if annotation.get("iscrowd") or annotation.get("keypoints") is None:  # a box or an outline
            continue
        points = _hide_missing(_get(annotation, "keypoints", list, "an annotation"))
        if not any(points[2::3]):
            continue
        key = _get(annotation, "image_id", (int, str), "an annotation")
        if key not in images:
            raise LabelsError(f"an annotation is of image {key}, which is not among the {len(images)} images")
        name = images[key]["file_name"]
        if len(points) != 3 * len(joints):
            raise LabelsError(f"'{name}' has {len(points)} numbers; expected x, y, v of {len(joints)} keypoints")
        if name in annotated:
            raise LabelsError(f"'{name}' has two annotations; {ONE_ANIMAL}")
        annotated[name] = images[key]
        poses.append(points)
        check_extent(len(poses), len(joints))
    if not poses:
        raise LabelsError("no annotation has a labelled keypoint")
    values = _to_array(poses, list(annotated)).reshape(len(poses), len(joints), 3)
    visibility = (values[..., 2] > 0).astype(np.uint8)
    keypoints = np.where(visibility[..., None] > 0, values[..., :2], 0.0)
    check_in_pixels(keypoints, visibility)
    sizes = np.array([_read_size(name, image) for name, image in annotated.items()], dtype=np.int64)
    return Labels(tuple(annotated), joints, keypoints, visibility, _read_coco_split(annotated), sizes, edges)


def _get_keypoints(category: dict[str, Any]) -> tuple[Any, Any]:
    return category["keypoints"], category.get("skeleton")


def _get_id(category: dict[str, Any]) -> Any:
    return None if "id" not in category else _get(category, "id", (int, str), "a category")


def _hide_missing(points: list[Any]) -> list[Any]:
    """Replace keypoints whose x or y is null or NaN by ones that are not visible."""
    hidden = list(points)
    for first in range(0, len(points) - 2, 3):
        if any(value is None or value != value for value in points[first : first + 2]):
            hidden[first : first + 3] = 0, 0, 0
    return hidden


def _read_size(name: str, image: dict[str, Any]) -> tuple[int, int]:
    """Return width and height of an image, or zeros if one is missing or 0, as sleap-io writes without the picture."""
    width, height = image.get("width"), image.get("height")
    if not width or not height:
        return 0, 0
    return check_size(name, *(_get(image, side, (int, float), f"'{name}'") for side in ("width", "height")))


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


def _read_label_studio(tasks: list[Any]) -> Labels:
    """Read Label Studio's tasks, its export "JSON" or "JSON-MIN"; sleap-io's form names a video's frames.

    sleap-io's own reader takes only the last, and neither sizes nor the order of keypoints.
    """
    names: dict[str, None] = {}
    joints: dict[str, int] = {}
    points: dict[tuple[str, str], tuple[float, float]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for task in tasks:
        if not isinstance(task, dict):
            raise LabelsError("the labels are a JSON list of something else than Label Studio's tasks")
        name = ""
        for label, value, holder in _list_points(task):
            name = name or _name_task(task)
            width, height = (
                _get(holder, f"original_{side}", (int, float), f"'{name}'") for side in ("width", "height")
            )
            sizes[name] = check_size(name, width, height)
            if holder.get("image_rotation"):
                raise LabelsError(
                    f"'{name}' was turned by {holder['image_rotation']} degrees in Label Studio; label the picture "
                    "without turning it"
                )
            if (name, label) in points:
                raise LabelsError(f"'{name}' has two labels '{label}'; {ONE_ANIMAL}")
            x, y = (_get(value, axis, (int, float), f"a label of '{name}'") for axis in "xy")
            points[name, label] = x / 100 * width, y / 100 * height
            names.setdefault(name)
            joints.setdefault(label, len(joints))
            check_extent(len(names), len(joints))
    if not points:
        raise LabelsError("no task has a labelled keypoint; expected Label Studio's annotations with keypointlabels")
    keypoints = np.zeros((len(names), len(joints), 2))
    visibility = np.zeros((len(names), len(joints)), dtype=np.uint8)
    rows = {name: row for row, name in enumerate(names)}
    for (name, label), point in points.items():
        place = rows[name], joints[label]
        keypoints[place], visibility[place] = point, 1
    return Labels(tuple(names), tuple(joints), keypoints, visibility, None, np.array([sizes[name] for name in names]))


def _list_points(task: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield each keypoint's label, the object with its place, and the one with the picture's size."""
    annotations = task.get("annotations", task.get("completions"))
    if annotations is None:  # JSON-MIN: lists of keypoints beside the picture
        results = [each for value in task.values() if isinstance(value, list) for each in value]
    else:
        if not isinstance(annotations, list):
            raise LabelsError("the annotations of a task are not a list; expected Label Studio's export")
        done = [each for each in annotations if isinstance(each, dict) and not each.get("was_cancelled")]
        # of several annotators', the one that was marked as the truth, or else the first that holds anything
        first = next((each for each in done if each.get("result")), {})
        chosen = next((each for each in done if each.get("ground_truth")), first)
        results = _get_objects(chosen, "result") if chosen else []
    for result in results:
        if isinstance(result, dict):
            value = result.get("value", result)
            labels = value.get("keypointlabels") if isinstance(value, dict) else None
            if result.get("type") == "labels" and isinstance(value, dict) and "height" not in value:
                labels = value.get("labels")  # of a point that was drawn without one: a rectangle has a height
            if labels and isinstance(labels, list):
                yield str(labels[0])[:200], value, result


def _name_task(task: dict[str, Any]) -> str:
    """Return the name of a task's picture, without the address and the prefix of Label Studio's uploads."""
    meta = task.get("meta")
    video = meta.get("video") if isinstance(meta, dict) else None
    if isinstance(video, dict):  # by sleap-io
        file, number = video.get("filename"), video.get("frame_idx")
        if isinstance(file, list) and type(number) is int and 0 <= number < len(file):
            return str(file[number])
        if isinstance(file, str) and type(number) is int:
            return frame_label(PurePosixPath(file.replace("\\", "/")).name, number)
    data = task.get("data", task)
    texts = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    address = data.get("image") if isinstance(data, dict) else None
    if not isinstance(address, str):
        address = next((text for text in texts if _PICTURE.search(text)), next((t for t in texts if "." in t), ""))
    if not address:
        raise LabelsError("a task names no picture; expected its address in 'data', such as 'image'")
    if "://" not in address and not address.startswith("/"):  # a plain name, which may hold # and %
        return address
    parts = urlsplit(address)
    path = parse_qs(parts.query).get("d", [""])[0] or unquote(parts.path)
    found = _UPLOAD.search(path)
    return path[found.end() :] if found else path


def _check_names(values: Sequence[Any]) -> tuple[str, ...]:
    names = tuple(str(value)[:200] for value in values)
    if not names or len(set(names)) < len(names):
        raise LabelsError(f"{len(names)} keypoint names, {len(set(names))} of them different; expected unique names")
    check_extent(1, len(names))
    return names


def _read_edges(values: Any, joints: int, first: int | None = None) -> tuple[tuple[int, int], ...]:
    """Read pairs of keypoints, counted from `first`; None is COCO's 1, or 0 if a pair has a 0."""
    pairs = values if isinstance(values, list) else [values]
    edges = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair)):
            raise LabelsError(f"the skeleton holds {str(pair)[:40]}; expected pairs of keypoints' numbers")
        edges.append((pair[0], pair[1]))
    if first is None:
        first = 0 if any(0 in edge for edge in edges) else 1
    for edge in edges:
        if not all(0 <= end - first < joints for end in edge):
            raise LabelsError(f"the skeleton holds {list(edge)}; expected pairs from {first} to {joints - 1 + first}")
    return tuple((i - first, j - first) for i, j in edges)


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
