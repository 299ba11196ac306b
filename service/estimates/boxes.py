"""The form field ``boxes``: where the things are in each picture, one or several of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from service.contract.errors import BadBoxes
from service.contract.media.fitting import Box

# sides of a box, as a multiple of the picture's longer side: beyond it the picture would be a few pixels of the square
_MAX_BOX = 8
_EXPECTED = (
    "expected a JSON list with an entry for each picture: [x, y, width, height] in pixels, a list of such boxes, "
    "or null for the whole picture"
)


@dataclass(frozen=True)
class PictureBoxes:
    """Where to look in one picture; each box gets a pose of its own.

    Attributes:
        boxes: at least one; None is the whole picture.
        numbered: whether they came as a list, so that an answer says which of them it is about.
    """

    boxes: tuple[Box | None, ...] = (None,)
    numbered: bool = False

    def number(self, place: int) -> int | None:
        """How an answer names the box at a place."""
        return place if self.numbered else None


def parse_boxes(text: str | None, count: int) -> list[PictureBoxes]:
    """The form field ``boxes``: the whole picture for each where it is missing or empty.

    Raises:
        BadBoxes: not JSON, not an entry a picture, or a box that is not four numbers with an area.
    """
    if not text or not text.strip():
        return [PictureBoxes()] * count
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadBoxes(f"boxes is not JSON ({str(error)[:80]}); {_EXPECTED}") from error
    if not isinstance(entries, list):
        raise BadBoxes(f"boxes is not a list; {_EXPECTED}")
    if len(entries) != count:
        raise BadBoxes(f"boxes holds {len(entries)} entries for {count} pictures; {_EXPECTED}")
    return [_entry(f"boxes[{index}]", entry) for index, entry in enumerate(entries)]


def check_box(box: Box, width: int, height: int) -> None:
    """Raises BadBoxes for a box far larger than its picture, or outside of it."""
    x, y, box_width, box_height = box
    most = _MAX_BOX * max(width, height)
    if max(box_width, box_height) > most:
        raise BadBoxes(
            f"the box {list(box)} is larger than {_MAX_BOX} times the longer side of the picture, which is "
            f"{width} x {height} pixels; a side may have at most {most}"
        )
    if x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0:
        raise BadBoxes(
            f"the box {list(box)} lies outside of the picture, which is {width} x {height} pixels "
            "with its EXIF orientation applied"
        )


def _entry(name: str, entry: Any) -> PictureBoxes:
    if entry is None:
        return PictureBoxes()
    if isinstance(entry, list) and entry and all(isinstance(box, list) for box in entry):
        return PictureBoxes(tuple(_box(f"{name}[{place}]", box) for place, box in enumerate(entry)), numbered=True)
    return PictureBoxes((_box(name, entry),))


def _box(name: str, box: Any) -> Box:
    numbers = isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)
    if not numbers or not all(abs(value) < 1e9 for value in box):  # nor NaN, nor infinite
        raise BadBoxes(f"{name} is {str(box)[:80]}; {_EXPECTED}")
    x, y, width, height = map(float, box)
    if width < 1 or height < 1:
        raise BadBoxes(f"{name} is {width:g} x {height:g} pixels; each side must have at least 1")
    return x, y, width, height
