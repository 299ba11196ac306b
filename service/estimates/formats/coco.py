"""COCO keypoints JSON: a data set whose annotations have a score, so that it serves as results too.

Keypoints are in the API's pixels, with integers at pixel centres; boxes are in edge coordinates, as in COCO.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from service.estimates.drawing import drawn_links
from service.estimates.pictures import Answer
from service.estimates.results import Results, final_keypoints

VISIBLE_SCORE = 0.5  # keypoints of at least this score count as visible (2), others as occluded (1)
_CATEGORY_ID = 1


def render_coco(results: Results) -> Iterator[bytes]:
    """Yield a COCO data set: the id of an image is its ``index``, annotations are numbered from 1.

    COCO programs ignore ``errors``, which is present if a picture without a pose does not end the request.
    """
    version = results.version
    links = drawn_links(version.skeleton)
    head: dict[str, Any] = {
        "info": {
            "description": f"poses of category {version.category} estimated by Pose Prior Learner, "
            f"version {version.name}",
            "category": version.category,
            "version": version.name,
        },
        "categories": [
            {
                "id": _CATEGORY_ID,
                "name": version.category,
                "supercategory": version.category,
                "keypoints": results.point_names(),
                # COCO numbers keypoints from 1; the strongest link first
                "skeleton": [[link.i + 1, link.j + 1] for link in reversed(links)],
            }
        ],
    }
    if results.errors is not None:
        head["errors"] = results.errors
    if results.outliers is not None:
        head["outliers"] = results.outliers
    yield json.dumps(head).encode()[:-1]
    images = (_image(results, outcome.poses[0]) for outcome in results.outcomes if outcome.poses)
    yield from _list_items("images", images)
    annotations = (_annotation(results, number, pose) for number, pose in enumerate(results.poses(), 1))
    yield from _list_items("annotations", annotations)
    yield b"}"


def _list_items(name: str, items: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    yield b', "%b": [' % name.encode()
    for number, item in enumerate(items):
        yield (b", " if number else b"") + json.dumps(item).encode()
    yield b"]"


def _image(results: Results, pose: Answer) -> dict[str, Any]:
    name = results.name(pose["index"])
    return {"id": pose["index"], "file_name": name, "width": pose["width"], "height": pose["height"]}


def _annotation(results: Results, number: int, pose: Answer) -> dict[str, Any]:
    keypoints, points = final_keypoints(pose), results.points(pose)
    box = results.boxes[pose["index"]].boxes[pose.get("box", 0)] or _bounding_box(keypoints)
    triples = [
        (0, 0, 0) if point["x"] is None else (point["x"], point["y"], 2 if point["score"] >= VISIBLE_SCORE else 1)
        for point in points
    ]
    return {
        "id": number,
        "image_id": pose["index"],
        "category_id": _CATEGORY_ID,
        "keypoints": [value for triple in triples for value in triple],
        "num_keypoints": sum(visible > 0 for _, _, visible in triples),
        "bbox": [round(value, 3) for value in box],
        **({} if (animal := pose.get("box")) is None or results.frames is None else {"track_id": animal}),
        **({"angle": angle} if (angle := pose.get("region", {}).get("angle")) is not None else {}),
        "area": round(box[2] * box[3], 3),
        "iscrowd": 0,
        "score": round(sum(point["score"] or 0.0 for point in keypoints) / len(keypoints), 4),
        "surprise": pose["surprise"],
        "present": pose.get("present"),
    }


def _bounding_box(points: list[dict[str, Any]]) -> tuple[float, float, float, float]:
    known = [point for point in points if point["x"] is not None]
    if not known:
        return 0.0, 0.0, 0.0, 0.0
    xs, ys = [point["x"] for point in known], [point["y"] for point in known]
    return min(xs) - 0.5, min(ys) - 0.5, max(xs) - min(xs) + 1, max(ys) - min(ys) + 1
