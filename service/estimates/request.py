"""The request of POST /estimate: its files in memory or streamed to disk, and its fields, checked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request

from model.scoring.label_tables import decode_text
from service.contract.errors import BadBoxes, BodyTooLarge, NoImages, NoMemory, TooManyImages
from service.contract.media.animals import MOST_ANIMALS, can_track
from service.contract.media.boxes import BoxFile
from service.contract.media.locating import fills_frames
from service.contract.messages import MAX_REFINE_STEPS
from service.contract.routing import time_ordered_id
from service.http.headers import responds_async
from service.http.multipart import FileField, Form, Part, Write, check_fields, read_form
from service.http.problems import BadField, SlowBody
from service.versions.reader import Version

from .boxes import PictureBoxes, boxes_by_frame, boxes_by_picture, parse_boxes, parse_file
from .formats.registry import FORMATS, check_format
from .smoothing import Smoothing, parse_smoothing
from .store import ID_DIGITS, EstimateStore

BODY_S = 120.0  # time for a body to arrive, if the request is answered at once
DRAWN = frozenset(("link_map", "overlay"))  # of the picture's size
_PICTURES = DRAWN | {"reconstructions"}
_OF_MEMORY = ("codes", "reconstructions")
INCLUDABLE = ("link_map", "trajectory", "reconstructions", "overlay", "codes", "links")
LOCATE = ("auto", "motion", "off")
ALIGN = ("off", "heading")
_FIELDS = (
    *("category", "version", "refine_steps", "include", "boxes", "locate", "align", "format", "landmarks", "every"),
    *("smooth", "max_gap", "max_animals"),
)
_MAX_EVERY = 100_000
MAX_BOXES_BYTES = 8 * 2**20  # they are stored with the request, and some 150,000 frames fit


class UploadedFiles:
    """The files of one request on disk.

    Args:
        in_thread: runs a blocking function.
        max_picture_bytes: size limit of one picture; a video has the limit of the body.
        on_growth: called with the bytes received before each write; its errors end the request.

    Attributes:
        size_bytes: number of bytes received so far.
        kept: whether :meth:`aclose` keeps them.
    """

    def __init__(
        self,
        store: EstimateStore,
        in_thread: Callable[..., Awaitable[Any]],
        max_picture_bytes: int,
        on_growth: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self.estimate_id = time_ordered_id(ID_DIGITS)
        self.size_bytes = 0
        self.kept = False
        self._store = store
        self._in_thread = in_thread
        self._max_picture_bytes = max_picture_bytes
        self._on_growth = on_growth
        self._parts: list[Part] = []
        self._created = False

    async def aclose(self) -> None:
        """Delete the files unless they are kept."""
        if self._parts and not self.kept:
            await self._in_thread(self._store.discard, self.estimate_id)

    def sink_of(self, part: Part) -> Write:
        """Return the function that writes a file's bytes, under its number in the request."""
        if self._parts and not (self._parts[-1].filename or self._parts[-1].size):
            self._parts.pop()  # the form leaves it out
        number = len(self._parts)
        self._parts.append(part)
        limit = self._max_picture_bytes if part.name == "images" else None

        async def write(data: bytes) -> None:
            self.size_bytes += len(data)
            if limit is not None and part.size > limit:
                raise BodyTooLarge(f"images[{number}] has more than {limit} bytes, the limit of a picture")
            if self._on_growth:
                await self._on_growth(self.size_bytes)
            await self._in_thread(self._append, number, data)

        return write

    async def create_empty(self, parts: Sequence[Part]) -> None:
        """Create the files that no byte came for, once all have arrived."""
        for number, part in enumerate(parts):
            if not part.size:
                await self._in_thread(self._append, number, b"")

    def _append(self, number: int, data: bytes) -> None:
        path = self._store.picture(self.estimate_id, number)
        if not self._created:  # once, or a write that goes on after the request's end would create the folder again
            self._created = True
            path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)


async def read_estimate(request: Request, max_images: int, files: UploadedFiles, *, keep_images: bool) -> Form:
    """Read the form, and the fields in the address, as in ``/estimate?landmarks=NAME``.

    Args:
        files: receives a video, and with `keep_images` the pictures.

    Raises:
        TooManyImages, BadField, and the errors of :func:`read_form_within`.
    """
    too_many = f"more than {max_images} pictures; a request may have {max_images}, send several requests"
    sink_of = files.sink_of if keep_images else None
    fields = {
        "images": FileField(max_images, TooManyImages(too_many), sink_of=sink_of),
        "video": FileField(sink_of=files.sink_of),
        "boxes": FileField(max_bytes=MAX_BOXES_BYTES, or_text=True),
    }
    form = await read_form_within(None if responds_async(request.headers) else BODY_S, request, fields)
    move_boxes(form)
    video = form.first("video")
    if video and len(form.files) > 1:
        raise BadField("video", "both pictures and a video were sent; send either")
    if video or keep_images:
        await files.create_empty(form.files)
    for name, value in request.query_params.multi_items():
        if (sent := form.fields.setdefault(name, value)) != value:
            detail = f"{name} was sent twice, as {sent[:80]!r} and as {value[:80]!r}, in the form or the address"
            raise BadField(name, detail)
    return form


def move_boxes(form: Form) -> None:
    """Make the field boxes text, whether it came as a file or as text."""
    if boxes := form.first("boxes"):
        form.files.remove(boxes)
        try:
            form.fields["boxes"] = decode_text(bytes(boxes.data))
        except UnicodeDecodeError as error:
            raise BadBoxes(f"the boxes are not {error.encoding.upper()} text (byte {error.start})") from error


async def read_form_within(limit_s: float | None, request: Request, fields: Mapping[str, FileField]) -> Form:
    """Read a form within the time that it may take to arrive, so that a slow client does not hold its place.

    Raises:
        SlowBody, and the errors of :func:`~service.http.multipart.read_form`.
    """
    try:
        async with asyncio.timeout(limit_s):
            return await read_form(request, fields)
    except TimeoutError:
        raise SlowBody(f"the body took longer than {limit_s:g} s to arrive; send fewer or smaller pictures") from None


@dataclass(frozen=True)
class Query:
    """The pictures to estimate and the form of the response.

    Attributes:
        version: None for the active one.
        names: file names of the pictures; empty if not sent.
        boxes: boxes of each picture; of a video, those of every frame.
        frame_boxes: boxes of a video by the frame's number, if they were sent so.
        locate: auto, motion or off; with boxes of some pictures or frames, how the others are located.
        align: off, or heading to rotate what the model sees; None is as the version was trained.
        landmarks: name of a set of landmarks to add.
        every: if the one file is a video, take the first frame and every n-th after it; 0 for pictures.
        smoothing: of a video's keypoints over time.
        max_animals: of a video: several are located by motion, each with a number.
        draws_video: whether to draw the poses on a video; `include` does not name it then.
    """

    category: str
    version: str | None
    refine_steps: int = 0
    include: frozenset[str] = frozenset()
    format: str = "native"
    names: tuple[str, ...] = ()
    boxes: tuple[PictureBoxes, ...] = ()
    landmarks: str | None = None
    every: int = 0
    frame_boxes: Mapping[int, PictureBoxes] | None = None
    locate: str = "off"
    align: str | None = None
    smoothing: Smoothing | None = None
    draws_video: bool = False
    max_animals: int = 1

    @classmethod
    def parse(
        cls, fields: Mapping[str, str], names: Sequence[str], max_poses: int, max_boxes: int, video: bool = False
    ) -> Query:
        """Parse the form's fields.

        Args:
            names: file names of the pictures, or of the one video, whose boxes are those of every frame.
            max_poses: largest number of poses of the request, or of a frame.
            max_boxes: largest number of boxes of one picture.

        Raises:
            BadField, BadBoxes, NoImages, TooManyImages.
        """
        check_fields(fields, _FIELDS, "images, video")
        sent = {name: text for name, value in fields.items() if (text := value.strip())}
        if "category" not in sent:
            raise BadField("category", "the field category is missing; it names what the pictures show")
        if not names:
            raise NoImages(
                "no picture was sent; send at least one in the field images (curl -F images=@photo.jpg), or a video in "
                "the field video"
            )
        if not video and "every" in sent:
            raise BadField("every", "every selects frames of a video, and pictures were sent; leave it out")
        file = parse_file(sent.get("boxes"))
        locate = _choose_locate(sent.get("locate"), file, video=video, boxes_of_all="boxes" in sent and not file)
        max_animals = _parse_integer(sent, "max_animals", 1, 1, MOST_ANIMALS)
        if max_animals > 1:
            _check_several(max_animals, video, sent, locate)
            locate = "motion"
        align = sent.get("align")
        if align is not None and align not in ALIGN:
            raise BadField("align", f"align is {align[:80]!r}; it must be {' or '.join(ALIGN)}")
        query = cls(
            category=sent["category"],
            version=sent.get("version"),
            refine_steps=_parse_integer(sent, "refine_steps", 0, 0, MAX_REFINE_STEPS),
            include=frozenset(filter(None, map(str.strip, sent.get("include", "").split(",")))),
            format=sent.get("format", "native"),
            names=tuple(names),
            boxes=tuple(_list_boxes(sent.get("boxes"), file, names, video)),
            landmarks=sent.get("landmarks"),
            every=_parse_integer(sent, "every", 1, 1, _MAX_EVERY) if video else 0,
            frame_boxes=boxes_by_frame(file) if file and video else None,
            locate=locate,
            align=align,
            smoothing=parse_smoothing(sent),
            max_animals=max_animals,
        )
        if query.smoothing and not video:
            raise BadField("smooth", "smooth is for the frames of a video, and pictures were sent; leave it out")
        if video and "overlay" in query.include:
            query = replace(query, include=query.include - {"overlay"}, draws_video=True)
        for word in sorted(query.include.difference(INCLUDABLE)):
            raise BadField("include", f"include names {word[:80]!r}; it may name {', '.join(INCLUDABLE)}")
        if query.format not in FORMATS:
            raise BadField("format", f"format is {query.format[:80]!r}; it must be one of {', '.join(FORMATS)}")
        if video and query.has_pictures:
            raise BadField(
                "include",
                f"include names {' and '.join(sorted(query.include & _PICTURES))}, which frames of a video can't have; "
                "leave it out, or send single frames as pictures",
            )
        if query.num_poses > max_poses:
            raise TooManyImages(
                f"the request has {query.num_poses} boxes in all of its pictures and may have {max_poses}; send "
                "several requests"
            )
        for index, entry in enumerate(query.boxes):
            if len(entry.boxes) > max_boxes:
                raise BadBoxes(f"boxes[{index}] has {len(entry.boxes)} boxes; a picture may have {max_boxes}")
        check_format(query.format, query.include, query.landmarks)
        return query

    @property
    def num_poses(self) -> int:
        """Number of boxes of all pictures; of a video, the most in a frame."""
        a_frame = max((len(boxes.boxes) for boxes in (self.frame_boxes or {}).values()), default=1)
        return max(a_frame, self.max_animals, sum(len(boxes.boxes) for boxes in self.boxes))

    @property
    def has_pictures(self) -> bool:
        """Whether answers have pictures, which take long to encode."""
        return not self.include.isdisjoint(_PICTURES)

    @property
    def num_drawings(self) -> int:
        """Number of pictures of the picture's size to draw for each pose."""
        return len(self.include & DRAWN)

    def list_links_of(self, version: Version) -> Version:
        """Return the version with the links to answer with: its skeleton's, or all if the request includes them."""
        return version.listing_all_links() if "links" in self.include else version

    def fit_to(self, version: Version) -> Query:
        """Return the query with locate and align as the version was trained, where the request leaves them open."""
        whole = self.locate == "auto" and version.locate == "off"
        return replace(self, locate="off" if whole else self.locate, align=self.align or version.align)

    @property
    def is_aligned(self) -> bool:
        """Whether squares are rotated so that the thing faces up."""
        return self.align == "heading"

    def check_memory(self, version: Version) -> None:
        """Raise NoMemory if the query needs a memory and the version has none."""
        if version.has_memory:
            return
        label = f"version '{version.name}' of category '{version.category}' has none: it was trained with autolink"
        for word in _OF_MEMORY:
            if word in self.include:
                raise NoMemory(
                    f"{word} need a memory, and {label}; leave {word} out, or name a version of the method ppl"
                )
        if self.refine_steps:
            raise NoMemory(
                f"refine_steps is {self.refine_steps}, which needs a memory, and {label}; leave refine_steps out, or "
                "name a version of the method ppl"
            )


def _choose_locate(sent: str | None, file: BoxFile | None, *, video: bool, boxes_of_all: bool) -> str:
    """Return how to find the thing where no box is.

    Args:
        file: of boxes, if one came.
        boxes_of_all: whether a box came for every picture or frame.

    Raises:
        BadField, BadBoxes.
    """
    locate = sent or ("auto" if video and not boxes_of_all else "off")
    if locate not in LOCATE or (not video and locate == "auto"):
        allowed = LOCATE if video else LOCATE[1:]
        raise BadField("locate", f"locate is {locate[:80]!r}; it must be {' or '.join(allowed)}")
    if boxes_of_all and locate != "off":
        detail = "boxes were sent, too, which are of all pictures or frames; leave one of them out"
        raise BadField("locate", f"locate is {locate}, and {detail}")
    return locate if file is None or fills_frames(locate, file) else "off"


def _list_boxes(text: str | None, file: BoxFile | None, names: Sequence[str], video: bool) -> list[PictureBoxes]:
    """Return the boxes of each picture, or those of all frames of a video. Raises BadBoxes."""
    if file is None:
        return parse_boxes(text, names)
    return [PictureBoxes()] if video else boxes_by_picture(file, names)


def _check_several(animals: int, is_video: bool, sent: Mapping[str, str], locate: str) -> None:
    """Raise BadField unless several animals can be located by motion."""
    reason = ""
    if not is_video:
        reason = "pictures were sent; it is for the frames of a video"
    elif "boxes" in sent:
        reason = "boxes were sent, too; leave one of them out (the column animal of a file numbers boxes)"
    elif locate == "off":
        reason = "locate is off; several animals are located by motion"
    elif not can_track():
        reason = "the server lacks scipy: pip install 'pose-prior-learner[video]'"
    if reason:
        raise BadField("max_animals", f"max_animals is {animals}, and {reason}")


def _parse_integer(fields: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = fields.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise BadField(name, f"{name} is {text[:80]!r}; it must be from {low} to {high}")
    return int(text)
