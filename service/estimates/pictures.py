"""The pictures of an estimate: the squares that the model sees, and the poses in pixels.

Everything here computes, and runs in the gateway's decoding threads.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract.errors import BodyTooLarge, NothingFound, PPLError
from service.contract.media.boxes import FoundBox, check_box, fit_found_box
from service.contract.media.fitting import Frame, reduction_for_boxes, unfit_square
from service.contract.media.pictures import Picture, PictureLimits, open_picture, open_reduced
from service.runtime.concurrency import DecodedPixelLimit
from service.versions.landmarks import LandmarkMaps
from service.versions.reader import Version

from . import drawing
from .boxes import PictureBoxes
from .replies import Pose

Answer = dict[str, Any]  # one pose, as in the response
PRESENT = 0.5  # below this probability the thing is not there, and has no landmarks

# pictures of the largest allowed size that may be decoded at once; all requests share the memory of the process
_LARGEST_AT_ONCE = 2
_decoded_pixels = DecodedPixelLimit()

_DIRECTIONS = 24  # tried where the heading is not known
_SAME_DIRECTION = 60  # degrees; the confidence compares the best direction with those further away


@dataclass(frozen=True)
class FittedBox:
    """One box of a picture as the model sees it.

    Attributes:
        index: the picture's index in the request.
        width, height: of the picture in pixels.
        square: (S, S, 3).
        frame: where the square lies on the picture.
        number: the box's index, if the picture has a list of boxes, or the number of its animal.
        region: the box, if it was located or comes from a file.
        orientation: EXIF's of the stored picture, which is applied.
        is_undirected: whether the thing's heading has yet to be found by trying; ``square`` is upright until then.
    """

    index: int
    width: int
    height: int
    square: NDArray[np.uint8]
    frame: Frame
    number: int | None = None
    region: FoundBox | None = None
    orientation: int = 1
    is_undirected: bool = False

    @staticmethod
    def choose_direction(directions: Sequence[FittedBox], poses: Sequence[Pose]) -> FittedBox:
        """Return the direction of a box in which the thing is most probably there, by the poses of all directions.

        Its ``angle_confidence`` is tanh(d / 2), where d is its log-odds of presence minus those of the best direction
        more than 60 degrees away. Without a presence, the mean score is taken for it.
        """
        chances = np.array([pose.scores.mean() if pose.presence is None else pose.presence for pose in poses])
        chances = chances.astype(np.float64).clip(1e-6, 1 - 1e-6)
        log_odds = np.log(chances / (1 - chances))
        best, count = int(chances.argmax()), len(poses)
        apart = np.abs((np.arange(count) - best + count // 2) % count - count // 2) * 360 / count
        confidence = math.tanh((log_odds[best] - log_odds[apart > _SAME_DIRECTION].max()) / 2)
        chosen = directions[best]
        assert chosen.region is not None
        return replace(chosen, region=replace(chosen.region, angle_confidence=round(confidence, 3)))


@dataclass(frozen=True)
class Upload:
    """An uploaded picture; `read` returns its bytes, from memory or from a file."""

    index: int
    filename: str
    read: Callable[[], bytes]
    boxes: PictureBoxes
    extra: ClassVar[Answer] = {}

    def fit(self, side: int, limits: PictureLimits, aligned: bool = False) -> list[FittedBox]:
        """Decode the picture and cut out the model's square for each of its boxes, rotated if ``aligned``.

        If ``aligned``, a box without an angle is undirected, see :meth:`fit_directions`.

        Raises:
            BadPicture and its subclasses, BodyTooLarge, BadBoxes: the detail names the picture.
        """
        with self._open(side, limits) as picture:
            return fit_boxes(picture, self.index, self.boxes, side, aligned=aligned, tries=True)

    def fit_directions(self, box: FittedBox, side: int, limits: PictureLimits) -> list[FittedBox]:
        """Return a box in 24 directions. Raises as :meth:`fit` does.

        The picture is decoded again, as holding the squares of all boxes would take much memory.
        """
        assert box.region is not None
        fitted = []
        with self._open(side, limits) as picture:
            for angle in np.arange(0, 360, 360 / _DIRECTIONS).tolist():
                region = replace(box.region, angle=angle)
                square, frame = fit_found_box(picture, side, region, aligned=True)
                fitted.append(replace(box, square=square, frame=frame, region=region, is_undirected=False))
        return fitted

    @contextmanager
    def _open(self, side: int, limits: PictureLimits) -> Iterator[Picture]:
        with ExitStack() as held:
            try:
                data = self.read()
                if len(data) > limits.max_bytes:
                    raise BodyTooLarge(f"the file has {len(data)} bytes; a picture may have {limits.max_bytes}")

                def reduction(width: int, height: int) -> float:
                    regions = self.boxes.regions
                    boxes = [each.box for each in regions((width, height))] if regions else self.boxes.boxes
                    return reduction_for_boxes(side, boxes or (None,))(width, height)

                yield open_reduced(data, reduction, limits, lambda n: held.enter_context(hold_pixels(n, limits)))
            except PPLError as error:
                name = f" ({self.filename[:60]})" if self.filename else ""
                detail = f"images[{self.index}]{name}: {error.detail}"
                raise type(error)(detail, extra={"index": self.index}) from error


@dataclass(frozen=True)
class FrameUpload:
    """A frame of a video, of which only the squares are kept, or the error.

    Attributes:
        extra: members to add to its answers.
    """

    index: int
    fitted: list[FittedBox] | PPLError
    extra: Answer = field(default_factory=dict)

    def fit(self, side: int, limits: PictureLimits, aligned: bool = False) -> list[FittedBox]:
        """Return the squares, or raise the error."""
        if isinstance(self.fitted, PPLError):
            raise self.fitted
        return self.fitted


Source = Upload | FrameUpload


def fit_boxes(
    picture: Picture, index: int, boxes: PictureBoxes, side: int, aligned: bool = False, *, tries: bool = False
) -> list[FittedBox]:
    """Cut out the model's square for each box of an RGB picture, rotated by its angle if ``aligned``.

    Args:
        tries: whether boxes without an angle are returned as undirected if ``aligned``; else they raise NoHeading.

    Raises BadBoxes, NothingFound, NoHeading.
    """
    size = picture.width, picture.height
    regions = boxes.regions(size) if boxes.regions else None
    if regions is not None and not regions:
        raise NothingFound("no box shows where the thing is in it; send a box, or take it whole with locate=off")
    chosen = [*regions] if regions else [FoundBox(box) if box else None for box in boxes.boxes]
    if aligned and not tries and any(each and each.animal is not None and each.angle is not None for each in chosen):
        chosen = [each for each in chosen if each and each.angle is not None]  # the other animals have no pose
    for each in chosen:
        if each:
            check_box(each.box, *size)

    whole = FoundBox((0.0, 0.0, float(size[0]), float(size[1])))
    fitted = []
    for number, each in enumerate(chosen):
        is_undirected = tries and aligned and (each is None or each.angle is None)
        one = each or whole if is_undirected else each
        own_number = _number_of(each, number) if boxes.numbered else None
        fitted.append(_fit_box(picture, index, side, own_number, bool(regions), aligned, one, is_undirected))
    return fitted


def _fit_box(
    picture: Picture,
    index: int,
    side: int,
    number: int | None,
    is_located: bool,
    aligned: bool,
    box: FoundBox | None,
    is_undirected: bool,
) -> FittedBox:
    square, frame = fit_found_box(picture, side, box, aligned=aligned and not is_undirected)
    region = None
    if box and (is_located or aligned):
        region = box if aligned else replace(box, angle=None)
    size = picture.width, picture.height
    return FittedBox(index, *size, square, frame, number, region, picture.orientation, is_undirected)


def _number_of(box: FoundBox | None, index: int) -> int:
    return index if box is None or box.animal is None else box.animal


def describe_pose(
    source: Source,
    fitted: FittedBox,
    pose: Pose,
    version: Version,
    include: frozenset[str],
    limits: PictureLimits,
    landmarks: LandmarkMaps | None = None,
) -> Answer:
    """Return a pose in pixels of the uploaded picture, without the links, which all poses share."""
    frame = fitted.frame
    points = frame.to_picture(pose.keypoints)
    names = [{"name": name} for name in version.names] if version.names else [{}] * len(points)
    answer: Answer = {
        "index": fitted.index,
        **source.extra,
        **({} if fitted.number is None else {"box": fitted.number}),
        "width": fitted.width,
        "height": fitted.height,
        **({} if fitted.region is None else {"region": fitted.region.to_region()}),
        "keypoints": [
            {"id": index, **name, **point, "score": round(score, 4)}
            for index, (name, point, score) in enumerate(zip(names, _round(points), pose.scores.tolist(), strict=True))
        ],
        "surprise": None if pose.surprise is None else round(float(pose.surprise), 4),
        "present": None if pose.presence is None else round(float(pose.presence), 4),
    }
    if landmarks is not None:
        answer["landmarks"] = describe_landmarks(landmarks, pose, frame, answer)
    if "codes" in include:
        assert pose.codes is not None
        answer["codes"] = pose.codes.tolist()
    if "trajectory" in include:
        answer["trajectory"] = [_round(step) for step in frame.to_picture(pose.trajectory)]
    if "reconstructions" in include:
        assert pose.reconstructions is not None
        answer["reconstructions"] = [_data_url(Image.fromarray(square)) for square in pose.reconstructions]
    if "link_map" in include:
        assert pose.link_map is not None
        answer["link_map"] = _data_url(unfit_square(pose.link_map, frame, fitted.width, fitted.height))
    if "overlay" in include:
        assert isinstance(source, Upload)
        # decoded again: pictures are not kept in memory while they wait
        with hold_pixels(fitted.width * fitted.height, limits):
            picture = open_picture(source.read(), limits)
            landmarks_of, region = answer.get("landmarks", ()), fitted.region
            drawn = drawing.overlay(picture, frame, points, version.skeleton, landmarks_of, region)
            answer["overlay"] = _data_url(drawn)
    return answer


def describe_landmarks(landmarks: LandmarkMaps, pose: Pose, frame: Frame, answer: Answer) -> list[dict[str, Any]]:
    """Return the landmarks of a pose in pixels; none if the thing is probably not there: they would be invented."""
    present = answer.get("present")
    if present is not None and present < PRESENT:
        return []
    points = _round(frame.to_picture(landmarks.apply(pose.keypoints)))
    scores = landmarks.score(pose.scores).tolist()
    return [
        {"name": name, **point, "score": round(score, 4)}
        for name, point, score in zip(landmarks.names, points, scores, strict=True)
    ]


def hold_pixels(pixels: int, limits: PictureLimits) -> AbstractContextManager[None]:
    """Wait until a picture of this size may be decoded, and count it while it is."""
    return _decoded_pixels.hold(pixels, _LARGEST_AT_ONCE * limits.max_pixels)


def _round(points: NDArray[np.float64]) -> list[dict[str, float]]:
    return [{"x": round(x, 3), "y": round(y, 3)} for x, y in points.tolist()]


def _data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(drawing.png(image)).decode("ascii")
