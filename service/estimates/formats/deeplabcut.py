"""DeepLabCut's table of poses: CSV whose first rows say scorer, body part and coordinate of each column.

Where pictures have lists of boxes, the row ``individuals`` tells the boxes apart, as in its tables of several animals.
"""

from __future__ import annotations

import csv
import io
from itertools import product

from service.estimates.pictures import Answer
from service.estimates.results import Results

_COORDS = ("x", "y", "likelihood")


def table(results: Results) -> str:
    """A row a picture, by its file's name; empty where there is no pose."""
    version = results.version
    poses: dict[int, dict[int, Answer]] = {}
    for pose in results.poses():
        poses.setdefault(pose["index"], {})[pose.get("box", 0)] = pose
    columns = list(product(_individuals(results), version.keypoint_names, _COORDS))
    header = [
        ["scorer", *(f"PPL_{version.category}_{version.name}" for _ in columns)],
        ["individuals", *(individual for individual, _, _ in columns)],
        ["bodyparts", *(part for _, part, _ in columns)],
        ["coords", *(coordinate for _, _, coordinate in columns)],
    ]
    if not any(boxes.numbered for boxes in results.boxes):
        del header[1]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(header)
    num_individuals = len(_individuals(results))
    for index in range(len(results.names)):
        row: list[object] = [results.name(index)]
        for individual in range(num_individuals):
            row += _cells(poses.get(index, {}).get(individual), len(version.keypoint_names))
        writer.writerow(row)
    return text.getvalue()


def _individuals(results: Results) -> list[str]:
    return [f"box{number}" for number in range(max(len(boxes.boxes) for boxes in results.boxes))]


def _cells(pose: Answer | None, num_keypoints: int) -> list[object]:
    if pose is None:
        return [""] * (len(_COORDS) * num_keypoints)
    return [value for point in pose["keypoints"] for value in (point["x"], point["y"], point["score"])]
