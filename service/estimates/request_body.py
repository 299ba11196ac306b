"""The body of POST /estimate: its fields, and its files in memory or streamed to disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from fastapi import Request

from service.contract.errors import BodyTooLarge, TooManyImages
from service.http.multipart import FileField, Form, Part, Write, read_form
from service.http.negotiation import responds_async
from service.http.problems import BadField, SlowBody

from .store import EstimateStore, new_estimate_id

BODY_S = 120.0  # time for a body to arrive, if the request is answered at once
_MAX_NAME = 200


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
