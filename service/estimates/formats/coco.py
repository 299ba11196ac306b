"""COCO's keypoints JSON: a data set whose annotations carry a score, so that they are results too.

Coordinates of keypoints are those of the API, pixels with integers at pixel centres; boxes are in edge coordinates.
"""

from __future__ import annotations

from typing import Any

from service.estimates.drawing import strong_links
from service.estimates.pictures import Answer
from service.estimates.results import Results

# from this score on a keypoint counts as seen (2), below as guessed (1)
VISIBLE_SCORE = 0.5
_CATEGORY = 1


def coco(results: Results) -> dict[str, Any]:
    """The results as a COCO data set: an image's id is its ``index``, annotations are numbered from 1.

    Programs for COCO pass ``errors`` by; it is there where what gives no pose does not end the request.
    """
    version, poses = results.version, list(results.poses())
    images = {pose["index"]: pose for pose in reversed(poses)}
    return {
        "info": {
            "description": f"poses of category {version.category} estimated by Pose Prior Learner, "
            f"version {version.name}",
            "category": version.category,
            "version": version.name,
        },
        "images": [_image(results, images[index]) for index in sorted(images)],
        "annotations": [_annotation(results, number, pose) for number, pose in enumerate(poses, 1)],
        "categories": [_category(results)],
        **({} if results.errors is None else {"errors": list(results.errors)}),
    }


def _image(results: Results, pose: Answer) -> dict[str, Any]:
    index = pose["index"]
    return {"id": index, "file_name": results.name(index), "width": pose["width"], "height": pose["height"]}


def _annotation(results: Results, number: int, pose: Answer) -> dict[str, Any]:
    points = pose["keypoints"]
    box = results.boxes[pose["index"]].boxes[pose.get("box", 0)] or _extent(points)
    triples = [(point["x"], point["y"], 2 if point["score"] >= VISIBLE_SCORE else 1) for point in points]
    return {
        "id": number,
        "image_id": pose["index"],
        "category_id": _CATEGORY,
        "keypoints": [value for triple in triples for value in triple],
        "num_keypoints": len(points),
        "bbox": [round(value, 3) for value in box],
        "area": round(box[2] * box[3], 3),
        "iscrowd": 0,
        "score": round(sum(point["score"] for point in points) / len(points), 4),
        "surprise": pose["surprise"],
    }


def _extent(points: list[dict[str, float]]) -> tuple[float, float, float, float]:
    """The box around keypoints, to the outer edges of their pixels."""
    xs, ys = [point["x"] for point in points], [point["y"] for point in points]
    return min(xs) - 0.5, min(ys) - 0.5, max(xs) - min(xs) + 1, max(ys) - min(ys) + 1


def _category(results: Results) -> dict[str, Any]:
    version = results.version
    links = strong_links(version.links, len(version.keypoint_names))
    return {
        "id": _CATEGORY,
        "name": version.category,
        "supercategory": version.category,
        "keypoints": list(version.keypoint_names),
        # COCO counts keypoints from 1; the strongest link first
        "skeleton": [[link.i + 1, link.j + 1] for link in reversed(links)],
    }
