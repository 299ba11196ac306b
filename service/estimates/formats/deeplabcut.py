"""DeepLabCut's table of poses: CSV whose first rows name scorer, body part and coordinate of each column.

If a picture has a list of boxes, the row ``individuals`` names the boxes, as in its tables of several animals. Rows are
named by the picture's file, and those of a video by the frame's number, as readers of such tables expect.
"""

from __future__ import annotations

import csv
import io
from itertools import product

from service.estimates.results import Results

_COORDS = ("x", "y", "likelihood")
_MEMBERS = ("x", "y", "score")  # the same in our poses
# in words: pandas takes a first row without any value for the names of the index
_MISSING = "NaN"


def render_deeplabcut(results: Results) -> bytes:
    """Return a table with a row for each picture or frame; cells without a pose are NaN."""
    version, names = results.version, results.version.keypoint_names
    poses = {(pose["index"], pose.get("box", 0)): pose for pose in results.poses()}
    individuals = [f"box{number}" for number in range(max(len(boxes.boxes) for boxes in results.boxes))]
    columns = list(product(individuals, names, _COORDS))
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
        row: list[object] = [results.name(index) if results.frames is None else results.frames.get(index, index)]
        for number in range(len(individuals)):
            pose = poses.get((index, number), {"keypoints": [dict.fromkeys(_MEMBERS, _MISSING)] * len(names)})
            row += [point[member] for point in pose["keypoints"] for member in _MEMBERS]
        writer.writerow(row)
    return text.getvalue().encode()
