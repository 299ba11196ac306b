"""The boxes in which the thing was found, as the CSV that requests take: edit it and send it back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from service.contract.media.boxes import FoundBox, write_csv
from service.estimates.pictures import Answer
from service.estimates.results import Results


def render_boxes(results: Results) -> Iterator[bytes]:
    """Yield a row for each box of each picture or frame; one without numbers where nothing was found."""
    poses: dict[int, list[Answer]] = {}
    for pose in results.poses():
        poses.setdefault(pose["index"], []).append(pose)

    def rows() -> Iterator[tuple[str, FoundBox | None]]:
        for index in range(len(results.boxes)):
            for pose in poses.get(index, [None]):
                region = pose.get("region") if pose else None
                found = FoundBox.of_region(region) if region else None
                animal = pose.get("box") if pose and results.frames is not None else None
                yield results.name(index), replace(found, animal=animal) if found else None

    yield write_csv(rows()).encode()
