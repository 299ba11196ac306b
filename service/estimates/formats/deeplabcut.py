"""DeepLabCut's table of poses: CSV whose first rows name scorer, body part and coordinate of each column.

If a picture has a list of boxes, the row ``individuals`` names the boxes, as in its tables of several animals. Rows are
named by the picture's file, and those of a video by the frame's number, as readers of such tables expect.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import islice, product

from service.estimates.results import Results

_COORDS = ("x", "y", "likelihood")
_MEMBERS = ("x", "y", "score")  # the same in our poses
_QUALITIES = ("score", "surprise", "present")
# in words: pandas takes a first row without any value for the names of the index
_MISSING = "NaN"


_ROWS = 500  # rendered at a time


def render_deeplabcut(results: Results) -> Iterator[bytes]:
    """Yield a table with a row for each picture or frame; cells without a pose are NaN."""
    version, names = results.version, results.point_names()
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

    def rows() -> Iterator[list[object]]:
        missing = [dict.fromkeys(_MEMBERS)] * len(names)
        for outcome in results.outcomes:
            index = outcome.index
            if index >= len(results.boxes):  # the damage that ends a video
                continue
            poses = {pose.get("box", 0): pose for pose in outcome.poses}
            row: list[object] = [results.name(index) if results.frames is None else results.frames[index]]
            for number in range(len(individuals)):
                points = results.points(poses[number]) if number in poses else missing
                row += [_MISSING if point[name] is None else point[name] for point in points for name in _MEMBERS]
            yield row

    table = rows()
    part = [list[object](row) for row in header]
    while part:
        yield _to_csv(part)
        part = list(islice(table, _ROWS))


def render_frames(results: Results) -> Iterator[bytes]:
    """Yield a table beside DeepLabCut's, which has no place for times: a row for each pose, with what it is like."""
    yield _to_csv([[*(("image",) if results.frames is None else ("frame", "time_s")), "box", *_QUALITIES]])
    for pose in results.poses():
        place = [results.name(pose["index"])] if results.frames is None else [pose["frame"], pose["time_s"]]
        scores = [point["score"] for point in pose["keypoints"]]
        mean = round(sum(scores) / len(scores), 4) if scores else None
        row = [*place, pose.get("box", 0), mean, pose["surprise"], pose.get("present")]
        yield _to_csv([[_MISSING if value is None else value for value in row]])


def _to_csv(rows: list[list[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
