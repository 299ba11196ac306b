"""The fields of a request for poses, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.contract.errors import BadBoxes, NoImages, NoMemory, TooManyImages
from service.contract.messages import MAX_REFINE_STEPS
from service.http.problems import BadField
from service.versions.reader import Version

from .formats.registry import FORMATS, check_format
from .pictures import DRAWN, PictureBoxes, parse_boxes, parse_include

_FIELDS = ("category", "version", "refine_steps", "include", "boxes", "format", "landmarks", "every")
_MAX_EVERY = 100_000


@dataclass(frozen=True)
class Query:
    """What to estimate, and how to answer.

    Attributes:
        version: None for the active one.
        names: file names of the pictures; empty if not sent.
        boxes: of each picture.
        landmarks: name of a set of landmarks to add.
        every: if the one file is a video, take the first frame and every n-th after it; 0 for pictures.
    """

    category: str
    version: str | None
    refine_steps: int = 0
    include: frozenset[str] = frozenset()
    format: str = FORMATS[0]
    names: tuple[str, ...] = ()
    boxes: tuple[PictureBoxes, ...] = ()
    landmarks: str | None = None
    every: int = 0

    @classmethod
    def parse(
        cls, fields: Mapping[str, str], names: Sequence[str], max_poses: int, max_boxes: int, video: bool = False
    ) -> Query:
        """Parse the form's fields.

        Args:
            names: file names of the pictures, or of the one video, whose boxes are those of every frame.
            max_poses: of the request, or of a frame.
            max_boxes: of one picture.

        Raises:
            BadField, BadBoxes, NoImages, TooManyImages.
        """
        for name in fields:
            if name not in _FIELDS:
                raise BadField(name, f"unknown field {name[:80]!r}; known are images, video, {', '.join(_FIELDS)}")
        if not fields.get("category"):
            raise BadField("category", "the field category is missing; it names what the pictures show")
        if not names:
            raise NoImages(
                "no picture was sent; send at least one in the field images (curl -F images=@photo.jpg), or a video in "
                "the field video"
            )
        if not video and fields.get("every", "").strip():
            raise BadField("every", "every selects frames of a video, and pictures were sent; leave it out")
        boxes = parse_boxes(fields.get("boxes"), len(names))
        query = cls(
            fields["category"].strip(),
            fields.get("version", "").strip() or None,
            _parse_integer("refine_steps", fields.get("refine_steps", ""), 0, MAX_REFINE_STEPS, 0),
            parse_include(fields.get("include")),
            _parse_format(fields.get("format", "")),
            tuple(names),
            tuple(boxes),
            fields.get("landmarks", "").strip() or None,
            _parse_integer("every", fields.get("every", ""), 1, _MAX_EVERY, 1) if video else 0,
        )
        if video and query.kinds_drawn:
            raise BadField(
                "include",
                f"include names {', '.join(sorted(query.include & DRAWN))}, which frames of a video can't have; leave "
                "it out, or send single frames as pictures",
            )
        if query.num_poses > max_poses:
            raise TooManyImages(
                f"the request has {query.num_poses} boxes in all of its pictures and may have {max_poses}; send "
                "several requests"
            )
        for index, entry in enumerate(boxes):
            if len(entry.boxes) > max_boxes:
                raise BadBoxes(f"boxes[{index}] has {len(entry.boxes)} boxes; a picture may have {max_boxes}")
        check_format(query.format, query.include, query.landmarks)
        return query

    @property
    def num_poses(self) -> int:
        """Number of boxes of all pictures; of a video, in each frame."""
        return sum(len(boxes.boxes) for boxes in self.boxes)

    def max_frames(self, max_poses: int) -> int:
        """Return how many frames of the video `max_poses` allow, as each box has a pose in every frame."""
        return max(1, max_poses // self.num_poses)

    @property
    def kinds_drawn(self) -> int:
        """Number of pictures to draw for each pose."""
        return len(self.include & DRAWN)

    def check_memory(self, version: Version) -> None:
        """Raise NoMemory if the query needs a memory and the version has none."""
        if version.has_memory:
            return
        label = f"version '{version.name}' of category '{version.category}' has none: it was trained with autolink"
        if "codes" in self.include:
            raise NoMemory(f"codes need a memory, and {label}; leave codes out, or name a version of the method ppl")
        if self.refine_steps:
            raise NoMemory(
                f"refine_steps is {self.refine_steps}, which needs a memory, and {label}; leave refine_steps out, or "
                "name a version of the method ppl"
            )


def _parse_format(text: str) -> str:
    name = text.strip() or FORMATS[0]
    if name not in FORMATS:
        raise BadField("format", f"format is {name[:80]!r}; it must be one of {', '.join(FORMATS)}")
    return name


def _parse_integer(name: str, text: str, low: int, high: int, default: int) -> int:
    text = text.strip() or str(default)
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise BadField(name, f"{name} is {text[:80]!r}; it must be from {low} to {high}")
    return int(text)
