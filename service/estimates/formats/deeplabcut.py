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
_QUALITIES = ("score", "surprise", "present")
# in words: pandas takes a first row without any value for the names of the index
_MISSING = "NaN"


def render_deeplabcut(results: Results) -> bytes:
    """Return a table with a row for each picture or frame; cells without a pose are NaN."""
    version, names = results.version, results.point_names()
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
            pose = poses.get((index, number))
            points = results.points(pose) if pose else [dict.fromkeys(_MEMBERS)] * len(names)
            row += [_MISSING if point[name] is None else point[name] for point in points for name in _MEMBERS]
        writer.writerow(row)
    return text.getvalue().encode()


def render_frames(results: Results) -> bytes:
    """Return a table beside DeepLabCut's, which has no place for times: a row for each pose, with what it is like."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(("image",) if results.frames is None else ("frame", "time_s")), "box", *_QUALITIES])
    for pose in results.poses():
        place = [results.name(pose["index"])] if results.frames is None else [pose["frame"], pose["time_s"]]
        scores = [point["score"] for point in pose["keypoints"]]
        row = [*place, pose.get("box", 0), round(sum(scores) / len(scores), 4), pose["surprise"], pose.get("present")]
        writer.writerow([_MISSING if value is None else value for value in row])
    return text.getvalue().encode()
