"""The pictures of an estimate: bytes → checked picture → the model's square, and poses → the answer.

Everything here computes, and runs in the gateway's decoding threads.
"""

from __future__ import annotations

import base64
import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import drawing
from .batching import Pose
from .contract.errors import BadBoxes, BodyTooLarge, PPLError
from .contract.pictures import Box, Frame, PictureLimits, fit_square, open_picture, unfit_square
from .errors import BadField
from .landmarks import LandmarkMaps
from .room import PixelRoom
from .versions import Version

INCLUDABLE = ("link_map", "trajectory", "overlay")


# sides of a box, as a multiple of the picture's longer side: beyond it the picture would be a few pixels of the square
_MAX_BOX = 8
# pictures of the largest size that are held decoded at once; all requests share the memory of the process
_LARGEST_AT_ONCE = 2
_room = PixelRoom()


@dataclass(frozen=True)
class Upload:
    """One picture as it came."""

    index: int
    filename: str
    data: bytes
    box: Box | None

    @property
    def label(self) -> str:
        """How an error names it."""
        name = f" ({self.filename[:60]})" if self.filename else ""
        return f"images[{self.index}]{name}"


@dataclass(frozen=True)
class Fitted:
    """A picture as the model sees it: its square, and where that lies on a picture of this size."""

    width: int
    height: int
    square: NDArray[np.uint8]
    frame: Frame


def fit(upload: Upload, side: int, limits: PictureLimits) -> Fitted:
    """Decode a picture and cut out the model's square.

    Raises:
        BadPicture and its kinds, BodyTooLarge, BadBoxes: the detail names the picture.
    """
    with ExitStack() as held:

        def wait_for_room(pixels: int) -> None:
            held.enter_context(_room.hold(pixels, _LARGEST_AT_ONCE * limits.max_pixels))

        try:
            if len(upload.data) > limits.max_bytes:
                raise BodyTooLarge(f"the file has {len(upload.data)} bytes; a picture may have {limits.max_bytes}")
            picture = open_picture(upload.data, limits, wait_for_room)
            if upload.box:
                _check_box(upload.box, picture.width, picture.height)
        except PPLError as error:
            raise type(error)(f"{upload.label}: {error.detail}", extra={"index": upload.index}) from error
        square, frame = fit_square(picture, side, upload.box)
        return Fitted(picture.width, picture.height, square, frame)


def parse_boxes(text: str | None, count: int) -> list[Box | None]:
    """The form field ``boxes``: None for each picture where it is missing or empty.

    Raises:
        BadBoxes: not JSON, not one a picture, or not four numbers with an area.
    """
    if not text or not text.strip():
        return [None] * count
    expected = "expected a JSON list with one [x, y, width, height] in pixels for each picture"
    try:
        boxes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadBoxes(f"boxes is not JSON ({str(error)[:80]}); {expected}") from error
    if not isinstance(boxes, list):
        raise BadBoxes(f"boxes is not a list; {expected}")
    if len(boxes) != count:
        raise BadBoxes(f"boxes holds {len(boxes)} boxes for {count} pictures; {expected}")
    return [_box(index, box, expected) for index, box in enumerate(boxes)]


def parse_include(text: str | None) -> frozenset[str]:
    """The form field ``include``.

    Raises:
        BadField: something that can't be included.
    """
    wanted = frozenset(word.strip() for word in (text or "").split(",") if word.strip())
    for word in sorted(wanted):
        if word not in INCLUDABLE:
            raise BadField("include", f"include names {word[:80]!r}; it may name {', '.join(INCLUDABLE)}")
    return wanted


def describe(
    upload: Upload,
    fitted: Fitted,
    pose: Pose,
    version: Version,
    include: frozenset[str],
    limits: PictureLimits,
    landmarks: LandmarkMaps | None = None,
) -> str:
    """One picture's part of the answer as JSON, in pixels of the picture as uploaded."""
    points = fitted.frame.to_picture(pose.keypoints)
    answer: dict[str, Any] = {
        "index": upload.index,
        "width": fitted.width,
        "height": fitted.height,
        "keypoints": [
            {
                "id": index,
                **({"name": version.names[index]} if version.names else {}),
                "x": round(x, 3),
                "y": round(y, 3),
                "score": round(score, 4),
            }
            for index, ((x, y), score) in enumerate(zip(points.tolist(), pose.scores.tolist(), strict=True))
        ],
    }
    if landmarks is not None:
        places = fitted.frame.to_picture(landmarks.of(pose.keypoints)).tolist()
        answer["landmarks"] = [
            {"name": name, "x": round(x, 3), "y": round(y, 3)}
            for name, (x, y) in zip(landmarks.names, places, strict=True)
        ]
    if "trajectory" in include:
        answer["trajectory"] = [
            [{"x": round(x, 3), "y": round(y, 3)} for x, y in step]
            for step in fitted.frame.to_picture(pose.trajectory).tolist()
        ]
    if "link_map" in include:
        assert pose.link_map is not None  # it was asked for
        laid_back = unfit_square(pose.link_map, fitted.frame, fitted.width, fitted.height)
        answer["link_map"] = _data_url(drawing.png(laid_back))
    if "overlay" in include:
        # decoded once more: pictures are not kept in memory while they wait
        with _room.hold(fitted.width * fitted.height, _LARGEST_AT_ONCE * limits.max_pixels):
            picture = open_picture(upload.data, limits)
            answer["overlay"] = _data_url(drawing.png(drawing.overlay(picture, fitted.frame, points, version.links)))
    # the links are the same for every picture, and most of the text
    return f'{json.dumps(answer)[:-1]}, "links": {version.links_json}}}'


def _box(index: int, box: Any, expected: str) -> Box:
    numbers = isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)
    if not numbers or not all(abs(value) < 1e9 for value in box):  # nor NaN, nor infinite
        raise BadBoxes(f"boxes[{index}] is {str(box)[:80]}; {expected}")
    x, y, width, height = map(float, box)
    if width < 1 or height < 1:
        raise BadBoxes(f"boxes[{index}] is {width:g} x {height:g} pixels; each side must have at least 1")
    return x, y, width, height


def _check_box(box: Box, width: int, height: int) -> None:
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


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
