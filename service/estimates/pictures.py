"""The pictures of an estimate: bytes → checked picture → the model's squares, and poses → the answer.

Everything here computes, and runs in the gateway's decoding threads.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from service.contract.errors import BodyTooLarge, PPLError
from service.contract.media.fitting import Frame, fit_square, reducible, unfit_square
from service.contract.media.pictures import Picture, PictureLimits, open_picture, open_reduced
from service.http.problems import BadField
from service.runtime.memory_limits import DecodedPixelLimit
from service.versions.landmarks import LandmarkMaps
from service.versions.reader import Version

from . import drawing
from .boxes import PictureBoxes, check_box
from .tickets import Pose

INCLUDABLE = ("link_map", "trajectory", "overlay", "codes")
DRAWN = frozenset(("link_map", "overlay"))

Answer = dict[str, Any]

# pictures of the largest size that are held decoded at once; all requests share the memory of the process
_LARGEST_AT_ONCE = 2
_room = DecodedPixelLimit()


@dataclass(frozen=True)
class Fitted:
    """A part of a picture as the model sees it: its square, and where that lies on a picture of this size.

    Attributes:
        index: of the picture.
        box: number of its box, where the picture has a list of them.
    """

    index: int
    width: int
    height: int
    square: NDArray[np.uint8]
    frame: Frame
    box: int | None = None


@dataclass(frozen=True)
class Upload:
    """One picture as it came.

    Attributes:
        read: gives its bytes, from memory or from where they are stored.
        extra: members of its part of the answer.
    """

    index: int
    filename: str
    read: Callable[[], bytes]
    boxes: PictureBoxes
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How an error names it."""
        name = f" ({self.filename[:60]})" if self.filename else ""
        return f"images[{self.index}]{name}"

    def fit(self, side: int, limits: PictureLimits) -> list[Fitted]:
        """Decode the picture and cut out the model's square for each of its boxes.

        Raises:
            BadPicture and its kinds, BodyTooLarge, BadBoxes: the detail names the picture.
        """
        with ExitStack() as held:

            def wait_for_room(pixels: int) -> None:
                held.enter_context(_room.hold(pixels, _LARGEST_AT_ONCE * limits.max_pixels))

            try:
                data = self.read()
                if len(data) > limits.max_bytes:
                    raise BodyTooLarge(f"the file has {len(data)} bytes; a picture may have {limits.max_bytes}")
                most = reducible(side, self.boxes.boxes)
                return fit_boxes(open_reduced(data, most, limits, wait_for_room), self.index, self.boxes, side)
            except PPLError as error:
                raise type(error)(f"{self.label}: {error.detail}", extra={"index": self.index}) from error


def fit_boxes(
    picture: Picture,
    index: int,
    boxes: PictureBoxes,
    side: int,
) -> list[Fitted]:
    """The square of each box of an RGB picture.

    Raises:
        BadBoxes: a box that does not suit the picture.
    """
    for box in boxes.boxes:
        if box:
            check_box(box, picture.width, picture.height)
    return [
        Fitted(
            index,
            picture.width,
            picture.height,
            *fit_square(picture, side, box),
            boxes.number(place),
        )
        for place, box in enumerate(boxes.boxes)
    ]


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
    read: Callable[[], bytes],
    fitted: Fitted,
    pose: Pose,
    version: Version,
    include: frozenset[str],
    limits: PictureLimits,
    landmarks: LandmarkMaps | None = None,
) -> Answer:
    """One pose's part of the answer, in pixels of the picture as uploaded; without the links, which all have.

    Args:
        read: gives the picture's bytes once more, to draw on.
        landmarks: to be told from the keypoints.
    """
    points = fitted.frame.to_picture(pose.keypoints)
    answer: Answer = {
        "index": fitted.index,
        **({} if fitted.box is None else {"box": fitted.box}),
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
        "surprise": None if pose.surprise is None else round(pose.surprise, 4),
    }
    if landmarks is not None:
        points_of = fitted.frame.to_picture(landmarks.apply(pose.keypoints)).tolist()
        answer["landmarks"] = [
            {"name": name, "x": round(x, 3), "y": round(y, 3)}
            for name, (x, y) in zip(landmarks.names, points_of, strict=True)
        ]
    if "codes" in include:
        assert pose.codes is not None  # they were asked for
        answer["codes"] = pose.codes.tolist()
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
            picture = open_picture(read(), limits)
            answer["overlay"] = _data_url(drawing.png(drawing.overlay(picture, fitted.frame, points, version.links)))
    return answer


def with_links(answer: Answer, version: Version) -> bytes:
    """A pose's part of the answer as JSON; the links are the same for all, and most of the text."""
    return b'%b, "links": %b}' % (to_json(answer)[:-1], version.links_json)


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
