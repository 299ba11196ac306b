"""What a request for poses asks for: the form of POST /estimate, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.contract.errors import BadBoxes, NoImages, NoMemory, TooManyImages
from service.contract.messages import MAX_REFINE_STEPS
from service.estimates.formats.registry import FORMATS, check_format
from service.http.problems import BadField
from service.versions.reader import Version

from .boxes import PictureBoxes, parse_boxes
from .pictures import DRAWN, parse_include

_FIELDS = ("category", "version", "refine_steps", "include", "boxes", "format", "landmarks", "every")
_MOST_EVERY = 100_000


@dataclass(frozen=True)
class Query:
    """What a request asks for, beside its pictures.

    Attributes:
        version: None is the active one.
        names: of the pictures' files as they were sent; empty where nobody said.
        boxes: of each picture.
        landmarks: name of a set that is to be told from the keypoints.
        every: the one file is a video, of which the first frame and each so-many-th are wanted; 0 for pictures.
    """

    category: str
    version: str | None
    refine_steps: int
    include: frozenset[str]
    format: str
    names: tuple[str, ...]
    boxes: tuple[PictureBoxes, ...]
    landmarks: str | None = None
    every: int = 0

    @classmethod
    def of(
        cls, values: Mapping[str, str], names: Sequence[str], most: int, most_boxes: int, video: bool = False
    ) -> Query:
        """The form's fields, checked.

        Args:
            names: of the pictures' files.
            most: poses that may be asked for at once.
            most_boxes: in one picture.
            video: whether the one file is a video; its boxes hold for every frame.

        Raises:
            BadField, BadBoxes, NoImages, TooManyImages.
        """
        for name in values:
            if name not in _FIELDS:
                raise BadField(name, f"unknown field {name[:80]!r}; known are images, video, {', '.join(_FIELDS)}")
        if not values.get("category"):
            raise BadField("category", "the field category is missing; it names what the pictures show")
        if not names:
            raise NoImages(
                "no picture came; send at least one in the field images (curl -F images=@photo.jpg), or a video in the "
                "field video"
            )
        if not video and values.get("every", "").strip():
            raise BadField("every", "every says which frames of a video to take, and pictures came; leave it out")
        boxes = parse_boxes(values.get("boxes"), len(names))
        query = cls(
            values["category"].strip(),
            values.get("version", "").strip() or None,
            _whole("refine_steps", values.get("refine_steps", ""), 0, MAX_REFINE_STEPS, 0),
            parse_include(values.get("include")),
            _format(values.get("format", "")),
            tuple(names),
            tuple(boxes),
            values.get("landmarks", "").strip() or None,
            _whole("every", values.get("every", ""), 1, _MOST_EVERY, 1) if video else 0,
        )
        if video and query.kinds_drawn:
            raise BadField(
                "include",
                f"include names {', '.join(sorted(query.include & DRAWN))}, and frames of a video are not drawn; leave "
                "it out, or send single frames as pictures",
            )
        if query.num_poses > most:
            raise TooManyImages(
                f"{query.num_poses} boxes; a request may have {most} in all of its pictures, send several requests"
            )
        for index, entry in enumerate(boxes):
            if len(entry.boxes) > most_boxes:
                raise BadBoxes(f"boxes[{index}] holds {len(entry.boxes)} boxes; a picture may have {most_boxes}")
        check_format(query.format, query.include, query.landmarks)
        return query

    @property
    def num_poses(self) -> int:
        """One for each box; of a video, in each frame."""
        return sum(len(boxes.boxes) for boxes in self.boxes)

    def most_frames(self, most_poses: int) -> int:
        """Frames of the video that so many poses at most can come of: each of its boxes has one in every frame."""
        return max(1, most_poses // self.num_poses)

    @property
    def kinds_drawn(self) -> int:
        """How many pictures are drawn for each pose."""
        return len(self.include & DRAWN)

    def check_memory(self, version: Version) -> None:
        """Raises NoMemory where something is asked that only a memory can say."""
        if version.has_memory:
            return
        of = f"version '{version.name}' of category '{version.category}' was trained with the method autolink"
        if "codes" in self.include:
            raise NoMemory(
                f"include names codes, and {of}, which has no memory; leave codes out, or name a version of the method "
                "ppl"
            )
        if self.refine_steps:
            raise NoMemory(
                f"refine_steps is {self.refine_steps}, and {of}, which has no memory to refine with; leave "
                "refine_steps out, or name a version of the method ppl"
            )


def _format(text: str) -> str:
    chosen = text.strip() or FORMATS[0]
    if chosen not in FORMATS:
        raise BadField("format", f"format is {chosen[:80]!r}; it must be one of {', '.join(FORMATS)}")
    return chosen


def _whole(name: str, text: str, low: int, high: int, default: int) -> int:
    text = text.strip() or str(default)
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise BadField(name, f"{name} is {text[:80]!r}; it must be from {low} to {high}")
    return int(text)
