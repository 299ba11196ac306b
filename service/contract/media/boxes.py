"""Read boxes of the things in pictures and frames: our CSV, COCO's JSON or MegaDetector's, recognised by content.

**CSV**: a header and a row for each box, columns in any order: ``image`` (file name, folders may be left out; of a
video ``walk.mp4#000012``), ``x``, ``y``, ``width``, ``height`` in pixels with EXIF orientation applied, and optionally
``confidence``, and ``angle``, the thing's heading in degrees clockwise from up (90 is right), with
``angle_confidence``; of several animals in a video ``animal``, the same number in all frames. A row of an image without
numbers says that nothing is in it. Written as labels may be: separated by semicolons or tabs, with decimal commas, in
UTF-16. **COCO**: ``images`` with ``file_name``,
``annotations`` with ``bbox``. **MegaDetector**: ``images`` with ``file`` and ``detections`` (``bbox`` in shares of the
picture, ``conf``, ``category``), of a video with ``frame_number``; only animals of a confidence above 0.2 count.

Boxes of COCO and MegaDetector are tight, so they get a margin; ours are taken as they are.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.scoring.label_tables import decode_text, is_missing, parse_decimal, split_table
from model.scoring.labels import Labels, LabelsError, NoMatchError
from service.contract.errors import BadBoxes, NoHeading

from .fitting import Box, Frame, fit_square
from .pictures import Picture
from .videos import frame_name
from .zip_names import HINT

MAX_BOXES_BYTES = 64 * 2**20
MARGIN = 0.1  # of the longer side, on each side of a tight box
_COLUMNS = ("image", "x", "y", "width", "height")
_ANGLE_COLUMNS = ("angle", "angle_confidence")
_ANIMAL_COLUMN = "animal"
_MOST_ANIMALS = 1000
_MOST_FRAMES = 10**9
_EXPECTED = "expected CSV with the columns image,x,y,width,height, COCO JSON with bbox, or MegaDetector's JSON"
_LEAST_CONFIDENCE = 0.2
_ANIMAL = "animal"
_FRAME = re.compile(r"(?<![0-9])([0-9]{1,18})(?:\.\w{1,10})?$")
_FRAME_OF_VIDEO = re.compile(r"#[0-9]{1,18}$")
_FRAME_CHARACTERS = 64  # searched at a name's end: searching all of a long name takes quadratic time
# sides of a box, as a multiple of the picture's longer side: in a larger one the picture is a few pixels of the square
_MAX_BOX = 8
_MOST_PX = 1e9
_MOST_DEGREES = 360.0


@dataclass(frozen=True)
class FoundBox:
    """A box in pixels, or in shares of the picture if ``relative``.

    Attributes:
        confidence: from 0 to 1, as its source states.
        angle: the thing's heading in degrees clockwise from up; None if it is not known.
        angle_confidence: from 0 to 1, see :func:`.heading.find_headings`.
        animal: number of the animal, the same in all frames; None if it is not known.
        by: "boxes" if it was sent and "motion" if it was found, where motion fills the frames without a sent box.
    """

    box: Box
    confidence: float | None = None
    angle: float | None = None
    angle_confidence: float | None = None
    animal: int | None = None
    by: str | None = None

    @classmethod
    def of_region(cls, region: Mapping[str, Any]) -> FoundBox:
        """Return the box of an answer's region."""
        box = (region["x"], region["y"], region["width"], region["height"])
        return cls(box, *(region.get(name) for name in ("confidence", *_ANGLE_COLUMNS, _ANIMAL_COLUMN, "by")))

    def upright(self) -> FoundBox:
        """Return the box without a heading."""
        return replace(self, angle=None, angle_confidence=None)

    def to_region(self) -> dict[str, Any]:
        """Return the region of an answer."""
        x, y, width, height = self.box
        angle = {} if self.angle is None else {"angle": self.angle, "angle_confidence": self.angle_confidence}
        by = {} if self.by is None else {"by": self.by}
        return {"x": x, "y": y, "width": width, "height": height, "confidence": self.confidence, **angle, **by}


def fit_found_box(
    picture: Picture, side: int, found: FoundBox | None, *, aligned: bool
) -> tuple[NDArray[np.uint8], Frame]:
    """Crop a picture to the model's square around a box, rotated so that the thing faces up if ``aligned``.

    Args:
        side: S, in pixels.
        found: in pixels; None takes the whole picture.

    Returns:
        uint8 (S, S, 3) and the square's Frame.

    Raises:
        NoHeading: it must be rotated, and the box has no angle.
    """
    if not aligned:
        return fit_square(picture, side, found.box if found else None)
    if found is None or found.angle is None:
        raise NoHeading(
            "the heading of the thing in it is not known; send its box with an angle, use locate=motion, or set align "
            "to off"
        )
    return fit_square(picture, side, found.box, found.angle)


def check_box(box: Box, width: int, height: int) -> None:
    """Raise BadBoxes if a box lies outside of its picture, or is far larger than it; width and height in pixels."""
    x, y, box_width, box_height = box
    max_side = _MAX_BOX * max(width, height)
    if max(box_width, box_height) > max_side:
        raise BadBoxes(
            f"the box {list(box)} is larger than {_MAX_BOX} times the longer side of the picture, which is "
            f"{width} x {height} pixels; a side may have at most {max_side}"
        )
    if x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0:
        raise BadBoxes(
            f"the box {list(box)} lies outside of the picture, which is {width} x {height} pixels "
            "with its EXIF orientation applied"
        )


@dataclass(frozen=True)
class BoxFile:
    """The boxes of some pictures by name, the most confident first; none where nothing is in a picture.

    Attributes:
        relative: whether boxes are shares of the picture's width and height.
        margin: to add on each side, as a share of the longer side.
        is_complete: whether frames that it does not name have nothing in them: MegaDetector lists of a video only
            those with a detection, and numbered animals were followed through all of it.
    """

    boxes: Mapping[str, Sequence[FoundBox]]
    relative: bool = False
    margin: float = 0.0
    is_complete: bool = False

    def match(self, names: Sequence[str]) -> list[str | None]:
        """Return the name in the file of each picture's boxes, by the same rules as labels; None for one without.

        Raises:
            BadBoxes: no picture has an entry, or one fits several.
        """
        own = tuple(self.boxes)
        try:
            rows = _without_keypoints(own).match(names)
        except LabelsError as error:
            raise _explain(error, names) from error
        return [own[row] if row >= 0 else None for row in rows]

    def check_files(self, names: Sequence[str]) -> None:
        """Raise BadBoxes if no box is of one of these pictures and videos; which frames are taken is not known yet."""
        files = tuple(dict.fromkeys(_FRAME_OF_VIDEO.sub("", name) for name in self.boxes))
        try:
            _without_keypoints(files).match(names)
        except NoMatchError as error:
            raise _explain(error, names) from error
        except LabelsError:  # several fit one, which may be different frames
            return

    def of(self, name: str | None, size: tuple[int, int]) -> list[FoundBox]:
        """Return the boxes of an entry in pixels of a picture of this size, with their margin."""
        return [replace(found, box=self._in_pixels(found.box, size)) for found in self.boxes.get(name or "", ())]

    @property
    def has_boxes(self) -> bool:
        """Whether there is any box; a CSV may only say in which pictures nothing is."""
        return any(self.boxes.values())

    @property
    def has_animals(self) -> bool:
        """Whether boxes have the numbers of their animals."""
        return any(found.animal is not None for boxes in self.boxes.values() for found in boxes)

    @property
    def has_angles(self) -> bool:
        """Whether any box has an angle."""
        return any(found.angle is not None for boxes in self.boxes.values() for found in boxes)

    def by_frame(self) -> dict[int, str]:
        """Return the entry of each frame of a video: names end with the frame's number. Raises BadBoxes."""
        frames: dict[int, str] = {}
        for name in self.boxes:
            number = _FRAME.search(name[-_FRAME_CHARACTERS:])
            if not number:
                raise BadBoxes(
                    f"the boxes name {name[:80]!r}; of a video, names end with the frame, as walk.mp4#000012"
                )
            if (other := frames.setdefault(int(number[1]), name)) != name:
                raise BadBoxes(f"the boxes name frame {int(number[1])} twice, as {other[:80]!r} and {name[:80]!r}")
        return frames

    def _in_pixels(self, box: Box, size: tuple[int, int]) -> Box:
        x, y, width, height = np.multiply(box, (*size, *size)).tolist() if self.relative else box
        more = self.margin * max(width, height)
        return x - more, y - more, width + 2 * more, height + 2 * more


def _without_keypoints(names: tuple[str, ...]) -> Labels:
    none = np.zeros((len(names), 0, 2))
    return Labels(names, (), none, none[..., 0].astype(np.uint8))


def _explain(error: LabelsError, names: Sequence[str]) -> BadBoxes:
    reason = str(error).replace("labelled pictures", "pictures with boxes").replace("label", "box")
    hint = "" if all(map(str.isascii, names)) else f"; {HINT}"
    return BadBoxes(f"the boxes do not fit the pictures: {reason}{hint}")


def parse_box_file(data: bytes | str) -> BoxFile:
    """Return the boxes in a file.

    Raises BadBoxes: of another form, damaged, or without a box; a CSV may have names of pictures without a box alone.
    """
    try:
        text = decode_text(data) if isinstance(data, bytes) else data.removeprefix("\ufeff")
        if not text.strip():
            raise BadBoxes(f"the boxes are empty; {_EXPECTED}")
        is_json = text.lstrip()[:1] == "{"
        found = _parse_json(json.loads(text)) if is_json else _parse_csv(text)
    except UnicodeDecodeError as error:
        raise BadBoxes(f"the boxes are not UTF-8 text (byte {error.start}); {_EXPECTED}") from error
    except (ValueError, RecursionError) as error:
        raise BadBoxes(f"the boxes are neither valid JSON nor CSV ({str(error)[:80]}); {_EXPECTED}") from error
    if not found.boxes and not is_json:
        raise BadBoxes(f"the boxes have a header and no row; {_EXPECTED}")
    if is_json and not found.has_boxes:
        raise BadBoxes(f"there is no box in the boxes, of {len(found.boxes)} pictures or frames; {_EXPECTED}")
    return found


def write_csv(rows: Iterable[tuple[str, FoundBox | None]]) -> str:
    """Return names and boxes in pixels as our CSV, with angles and animals if any box has one."""
    named = list(rows)
    has_angles = any(found and found.angle is not None for _, found in named)
    has_animals = any(found and found.animal is not None for _, found in named)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    animals = (_ANIMAL_COLUMN,) if has_animals else ()
    writer.writerow((*_COLUMNS, "confidence", *(_ANGLE_COLUMNS if has_angles else ()), *animals))
    for name, found in named:
        values = (*found.box, found.confidence, found.angle, found.angle_confidence) if found else (None,) * 7
        shown = (values if has_angles else values[:5]) + ((found and found.animal,) if has_animals else ())
        writer.writerow((name, *("" if value is None else value for value in shown)))
    return text.getvalue()


def _parse_csv(text: str) -> BoxFile:
    delimiter, rows = split_table(text)
    header = [cell.lower() for _, first in islice(rows, 1) for cell in first]
    missing = [name for name in _COLUMNS if header.count(name) != 1]
    if missing:
        raise BadBoxes(f"the header of the boxes lacks {', '.join(missing)} or has it twice; {_EXPECTED}")
    found: dict[str, list[FoundBox]] = {}
    for number, row in rows:
        cells = {name: "" if is_missing(cell) else cell for name, cell in zip(header, row, strict=False)}
        name, values = cells.get("image", ""), [cells.get(column, "") for column in _COLUMNS[1:]]
        if not name and not any(values):  # an empty row, but for columns of others
            continue
        if not name:
            raise BadBoxes(f"row {number} of the boxes names no image; {_EXPECTED}")
        entry = found.setdefault(name, [])
        if any(values):
            confidence, *angle = (cells.get(column) or None for column in ("confidence", *_ANGLE_COLUMNS))
            box = _check(f"row {number} of the boxes", values, confidence, angle, delimiter)
            entry.append(replace(box, animal=_parse_animal(number, cells.get(_ANIMAL_COLUMN), entry)))
    return BoxFile(_sort(found), is_complete=any(box.animal is not None for boxes in found.values() for box in boxes))


def _parse_json(document: dict[str, Any]) -> BoxFile:
    images = document.get("images")
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise BadBoxes(f"the boxes have no list 'images'; {_EXPECTED}")
    if "annotations" in document:
        return _parse_coco(images, document["annotations"])
    return _parse_megadetector(images, document.get("detection_categories") or {})


def _parse_coco(images: list[dict[str, Any]], annotations: Any) -> BoxFile:
    if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
        raise BadBoxes(f"'annotations' of the boxes is not a list of objects; {_EXPECTED}")
    names = {_read_id(image, "id"): str(image.get("file_name")) for image in images}
    found: dict[str, list[FoundBox]] = {name: [] for name in names.values()}
    for number, annotation in enumerate(annotations):
        image = _read_id(annotation, "image_id")
        if annotation.get("bbox") and image in names:
            box = _check(f"annotations[{number}] of the boxes", annotation["bbox"], annotation.get("score"))
            found[names[image]].append(box)
    return BoxFile(_sort(found), margin=MARGIN)


def _read_id(holder: dict[str, Any], key: str) -> int | str | None:
    value = holder.get(key)
    if not isinstance(value, int | str | None):
        raise BadBoxes(f"{key} is {str(value)[:40]} in the boxes; expected a number or a text")
    return value


def _parse_megadetector(images: list[dict[str, Any]], categories: Any) -> BoxFile:
    if not isinstance(categories, dict):
        raise BadBoxes(f"detection_categories of the boxes is not an object; {_EXPECTED}")
    animals = {key for key, name in categories.items() if str(name).lower() == _ANIMAL} or set(categories)
    found: dict[str, list[FoundBox]] = {}
    is_complete = any("frame_rate" in image for image in images)
    for image in images:
        name = image.get("file")
        if not isinstance(name, str):
            raise BadBoxes(f"an image of the boxes has no 'file'; {_EXPECTED}")
        if "frame_rate" not in image:  # of a video, frames without a detection are not listed
            found.setdefault(name, [])
        detections = image.get("detections") or []
        if not isinstance(detections, list) or not all(isinstance(each, dict) for each in detections):
            raise BadBoxes(f"the detections of {name[:80]!r} are not a list of objects; {_EXPECTED}")
        for number, detection in enumerate(detections):
            number_in_video = detection.get("frame_number", 0)
            if type(number_in_video) is not int or not 0 <= number_in_video < _MOST_FRAMES:
                raise BadBoxes(
                    f"frame_number is {str(number_in_video)[:40]} in the boxes of {name[:80]!r}; expected 0 or more"
                )
            frame = frame_name(name, number_in_video) if "frame_number" in detection else name
            box = _check(f"detections[{number}] of {name[:80]!r}", detection.get("bbox"), detection.get("conf"))
            is_animal = not animals or str(detection.get("category")) in animals
            entry = found.setdefault(frame, [])
            if is_animal and (box.confidence is None or box.confidence >= _LEAST_CONFIDENCE):
                entry.append(box)
    return BoxFile(_sort(found), relative=True, margin=MARGIN, is_complete=is_complete)


def _check(
    where: str, values: Any, confidence: Any, angle: Sequence[Any] = (None, None), delimiter: str = ","
) -> FoundBox:
    def parse(value: Any) -> float:
        return parse_decimal(value, delimiter) if isinstance(value, str) else float(value)

    def parse_more(value: Any) -> float | None:
        return None if value is None or math.isnan(number := parse(value)) else number

    try:
        x, y, width, height = map(parse, values if isinstance(values, list) else ())
        more = [parse_more(value) for value in (confidence, *angle)]
    except (TypeError, ValueError, OverflowError):
        raise BadBoxes(f"{where}: {str(values)[:80]} is not x, y, width and height as numbers") from None
    if not all(abs(value) < _MOST_PX for value in (x, y, width, height)) or min(width, height) <= 0:
        raise BadBoxes(f"{where}: {str(values)[:80]} is not finite or has no area")
    if math.inf in map(abs, (more[0] or 0, more[2] or 0)):
        raise BadBoxes(f"{where}: a confidence is not finite; expected one from 0 to 1, or none")
    return FoundBox((x, y, width, height), more[0], check_angle(where, more[1]), more[2])


def _parse_animal(number: int, cell: str | None, others: Sequence[FoundBox]) -> int | None:
    """Return the animal of a row of CSV. Raises BadBoxes."""
    if not cell:
        return None
    if not (cell.isascii() and cell.isdigit() and int(cell) < _MOST_ANIMALS):
        raise BadBoxes(f"row {number} of the boxes: animal is {cell[:80]!r}; it must be a number below {_MOST_ANIMALS}")
    if any(other.animal == int(cell) for other in others):
        raise BadBoxes(f"row {number} of the boxes: the image has a box of animal {int(cell)} already")
    return int(cell)


def check_angle(where: str, angle: float | None) -> float | None:
    """Return an angle in degrees as it is. Raises BadBoxes unless it is from -360 to 360."""
    if angle is not None and not abs(angle) <= _MOST_DEGREES:
        raise BadBoxes(f"{where}: the angle is {angle:g}; it must be in degrees from -360 to 360, clockwise from up")
    return angle


def _sort(found: dict[str, list[FoundBox]]) -> dict[str, list[FoundBox]]:
    return {name: sorted(boxes, key=lambda box: -(box.confidence or 0)) for name, boxes in found.items()}
