"""The request of POST /estimate: its files in memory or streamed to disk, and its fields, checked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastapi import Request

from service.contract.errors import BadBoxes, BodyTooLarge, NoImages, NoMemory, TooManyImages
from service.contract.messages import MAX_REFINE_STEPS
from service.http.headers import responds_async
from service.http.multipart import FileField, Form, Part, Write, read_form
from service.http.problems import BadField, SlowBody
from service.versions.reader import Version

from .formats.registry import FORMATS, check_format
from .pictures import DRAWN, PictureBoxes, parse_boxes, parse_include
from .store import EstimateStore, new_estimate_id

BODY_S = 120.0  # time for a body to arrive, if the request is answered at once
_MAX_NAME = 200
_FIELDS = ("category", "version", "refine_steps", "include", "boxes", "format", "landmarks", "every")
_MAX_EVERY = 100_000


class UploadedFiles:
    """The files of one request on disk. An async context manager that deletes them at its end unless they are kept.

    Args:
        in_thread: runs a blocking function.
        max_picture_bytes: of one picture; a video has the limit of the body.
        on_growth: called with the bytes received before each write; its errors end the request.

    Attributes:
        size_bytes: received so far.
        names: of the files, without folders; complete after :meth:`number_files`.
    """

    def __init__(
        self,
        store: EstimateStore,
        in_thread: Callable[..., Awaitable[Any]],
        max_picture_bytes: int,
        on_growth: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self.size_bytes = 0
        self.names: list[str] = []
        self._store = store
        self._in_thread = in_thread
        self._max_picture_bytes = max_picture_bytes
        self._on_growth = on_growth
        self._arrival: dict[int, int] = {}  # number of the file by id of the part
        self._kept = self._created = False

    async def __aenter__(self) -> UploadedFiles:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._created and not self._kept:
            await self._in_thread(self._store.discard, self.estimate_id)

    @cached_property
    def estimate_id(self) -> str:
        """Name of their folder; generated when needed, as most requests need none."""
        return new_estimate_id()

    def sink_of(self, part: Part) -> Write:
        """Return the function that writes a file's bytes."""
        number = self._arrival[id(part)] = len(self._arrival)
        limit = self._max_picture_bytes if part.name == "images" else None

        async def write(data: bytes) -> None:
            self.size_bytes += len(data)
            if limit is not None and part.size > limit:
                raise BodyTooLarge(f"images[{number}] has more than {limit} bytes, the limit of a picture")
            if self._on_growth:
                await self._on_growth(self.size_bytes)
            await self._in_thread(self._append, number, data)

        return write

    async def number_files(self, parts: list[Part]) -> None:
        """Number the files as the pictures of the request, once all have arrived."""
        await self._in_thread(self._rename, [self._arrival[id(part)] for part in parts])
        self.names = [part.filename[-_MAX_NAME:] for part in parts]

    def keep(self) -> None:
        """Keep the files."""
        self._kept = True

    def _append(self, number: int, data: bytes) -> None:
        self._create_folder()
        with self._store.picture(self.estimate_id, number).open("ab") as file:
            file.write(data)

    def _rename(self, numbers: list[int]) -> None:
        self._create_folder()
        for index, number in enumerate(numbers):  # ascending, so no file is overwritten
            path = self._store.picture(self.estimate_id, number)
            path.touch()
            if number != index:
                path.rename(self._store.picture(self.estimate_id, index))

    def _create_folder(self) -> None:
        if not self._created:
            self._created = True
            self._store.create_folder(self.estimate_id)


async def read_estimate(request: Request, max_images: int, files: UploadedFiles, *, keep_images: bool) -> Form:
    """Read the form within the time that it may take to arrive, so that a slow client does not hold its place.

    Args:
        files: receives a video, and with `keep_images` the pictures.

    Raises:
        SlowBody, TooManyImages, BadField, and as :func:`~service.http.multipart.read_form`.
    """

    def too_many() -> TooManyImages:
        return TooManyImages(f"more than {max_images} pictures; a request may have {max_images}, send several requests")

    def second_video() -> BadField:
        return BadField("video", "more than one video was sent; send one")

    fields = {
        "images": FileField(max_images, too_many, sink_of=files.sink_of if keep_images else None),
        "video": FileField(1, second_video, sink_of=files.sink_of),
    }
    try:
        async with asyncio.timeout(None if responds_async(request.headers) else BODY_S):
            form = await read_form(request, fields)
    except TimeoutError:
        raise SlowBody(f"the body took longer than {BODY_S:g} s to arrive; send fewer or smaller pictures") from None
    if form.first("video") and len(form.files) > 1:
        raise BadField("video", "both pictures and a video were sent; send either")
    if form.first("video") or keep_images:
        await files.number_files(form.files)
    return form


def merge_fields(request: Request, form: Form) -> dict[str, str]:
    """Return the fields of the form and of the address, as in ``/estimate?landmarks=NAME``.

    Raises:
        BadField: a field has two values.
    """
    fields = dict(form.fields)
    for name, value in request.query_params.multi_items():
        if fields.setdefault(name, value) != value:
            raise BadField(
                name,
                f"{name} was sent twice, as {fields[name][:80]!r} and as {value[:80]!r}, in the form or the address",
            )
    return fields


@dataclass(frozen=True)
class Query:
    """The pictures to estimate and the form of the response.

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
