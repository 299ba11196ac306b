"""The boxes of a request for poses: of each picture, or of the frames of a video."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from service.contract.errors import BadBoxes
from service.contract.media.boxes import BoxFile, FoundBox, check_angle, parse_box_file
from service.contract.media.fitting import Box

_EXPECTED_BOXES = (
    "expected a JSON list with an entry for each picture: [x, y, width, height] in pixels, or with an angle as a fifth "
    "number, a list of such boxes, or null for the whole picture; or a file of boxes: CSV (image,x,y,width,height), "
    "COCO or MegaDetector's JSON"
)


@dataclass(frozen=True)
class PictureBoxes:
    """The boxes of one picture; each gets a pose.

    Attributes:
        boxes: at least one; None is the whole picture.
        numbered: whether they were sent as a list, so that an answer has the number of its box.
        regions: returns the boxes for the picture's size instead, if they are located, have angles or come from a file.
    """

    boxes: tuple[Box | None, ...] = (None,)
    numbered: bool = False
    regions: Callable[[tuple[int, int]], Sequence[FoundBox]] | None = None

    @classmethod
    def located(cls, boxes: Sequence[FoundBox]) -> PictureBoxes:
        """Return boxes in pixels that were found."""
        is_numbered = len(boxes) > 1 or any(found.animal is not None for found in boxes)
        return cls((None,) * max(1, len(boxes)), is_numbered, lambda size: boxes)

    @classmethod
    def of_file(cls, file: BoxFile, entry: str | None) -> PictureBoxes:
        """Return the boxes of an entry of a file."""
        return replace(cls.located(file.boxes.get(entry or "", ())), regions=partial(file.of, entry))


NOTHING = PictureBoxes.located([])
"""What a picture is given in which nothing was found: it has no pose but an error."""


def parse_file(text: str | None) -> BoxFile | None:
    """Parse the form field ``boxes`` if it is a file; None if it is a list or missing. Raises BadBoxes."""
    is_file = text and text.strip() and not text.lstrip().startswith("[")
    return parse_box_file(text) if text and is_file else None


def boxes_by_frame(file: BoxFile) -> Mapping[int, PictureBoxes]:
    """Return the boxes of a video by the frame's number. Raises BadBoxes."""
    return {number: PictureBoxes.of_file(file, entry) for number, entry in file.by_frame().items()}


def boxes_by_picture(file: BoxFile, names: Sequence[str]) -> list[PictureBoxes]:
    """Return the boxes of each picture; NOTHING for one that the file does not name. Raises BadBoxes."""
    return [NOTHING if entry is None else PictureBoxes.of_file(file, entry) for entry in file.match(names)]


def parse_boxes(text: str | None, names: Sequence[str]) -> list[PictureBoxes]:
    """Parse the form field ``boxes`` of pictures; if it is missing or empty, each box is a whole picture.

    Raises:
        BadBoxes: not JSON, not one entry for each picture, or a box is not four numbers with an area.
    """
    count = len(names)
    if not text or not text.strip():
        return [PictureBoxes()] * count
    if file := parse_file(text):
        if not file.has_boxes:
            raise BadBoxes(f"there is no box in the boxes; {_EXPECTED_BOXES}")
        return boxes_by_picture(file, names)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadBoxes(f"boxes is not JSON ({str(error)[:80]}); {_EXPECTED_BOXES}") from error
    if not isinstance(entries, list):
        raise BadBoxes(f"boxes is not a list; {_EXPECTED_BOXES}")
    if len(entries) != count:
        raise BadBoxes(f"boxes has {len(entries)} entries for {count} pictures; {_EXPECTED_BOXES}")
    return [_parse_entry(f"boxes[{index}]", entry) for index, entry in enumerate(entries)]


def _parse_entry(name: str, entry: Any) -> PictureBoxes:
    if entry is None:
        return PictureBoxes()
    is_list = isinstance(entry, list) and bool(entry) and all(isinstance(box, list) for box in entry)
    if is_list:
        boxes = [_parse_box(f"{name}[{number}]", box) for number, box in enumerate(entry)]
    else:
        boxes = [_parse_box(name, entry)]
    if any(each.angle is not None for each in boxes):
        return replace(PictureBoxes.located(boxes), numbered=is_list)
    return PictureBoxes(tuple(each.box for each in boxes), numbered=is_list)


def _parse_box(name: str, box: Any) -> FoundBox:
    is_box = isinstance(box, list) and len(box) in (4, 5) and all(type(value) in (int, float) for value in box)
    if not is_box or not all(abs(value) < 1e9 for value in box):  # false for NaN and infinity too
        raise BadBoxes(f"{name} is {str(box)[:80]}; {_EXPECTED_BOXES}")
    x, y, width, height, *angle = map(float, box)
    if width < 1 or height < 1:
        raise BadBoxes(f"{name} is {width:g} x {height:g} pixels; each side must have at least 1")
    return FoundBox((x, y, width, height), angle=check_angle(name, *angle) if angle else None)
