"""DeepLabCut's table of poses: CSV whose first rows name scorer, body part and coordinate of each column.

If a picture has a list of boxes, the row ``individuals`` names the boxes, as in its tables of several animals.
"""

from __future__ import annotations

import csv
import io
from itertools import product

from service.estimates.pictures import Answer
from service.estimates.results import Results

_COORDS = ("x", "y", "likelihood")


def render_deeplabcut(results: Results) -> bytes:
    """Return a table with a row for each picture, named by its file; cells without a pose are empty."""
    version, num_keypoints = results.version, len(results.version.keypoint_names)
    poses: dict[int, dict[int, Answer]] = {}
    for pose in results.poses():
        poses.setdefault(pose["index"], {})[pose.get("box", 0)] = pose
    individuals = [f"box{number}" for number in range(max(len(boxes.boxes) for boxes in results.boxes))]
    columns = list(product(individuals, version.keypoint_names, _COORDS))
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
    for index in range(len(results.names)):
        row: list[object] = [results.name(index)]
        for number in range(len(individuals)):
            row += _cells(poses.get(index, {}).get(number), num_keypoints)
        writer.writerow(row)
    return text.getvalue().encode()


def _cells(pose: Answer | None, num_keypoints: int) -> list[object]:
    if pose is None:
        return [""] * (len(_COORDS) * num_keypoints)
    return [value for point in pose["keypoints"] for value in (point["x"], point["y"], point["score"])]
