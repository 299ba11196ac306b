"""POST /estimate: bytes → checked pictures → squares → batch → poses → the answer in pixels."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..batching import Group, Ticket
from ..contract.errors import NoImages, NoMemory, TooManyImages, TooManyPixels
from ..contract.messages import MAX_REFINE_STEPS
from ..documentation import estimate_body
from ..errors import BadField, SlowBody, responses
from ..forms import FileField, Form, read_form
from ..gateway import Gateway, gateway_of
from ..images import Fitted, Upload, describe, fit, parse_boxes, parse_include
from ..landmarks import LandmarkMaps
from ..middleware import body_bytes
from ..schemas import Estimate
from ..settings import Settings
from ..tasks import end
from ..versions import Version

BODY_S = 120.0  # how long a body may take to arrive

_FIELDS = ("category", "version", "refine_steps", "include", "boxes", "landmarks")
_DIGITS = len(str(MAX_REFINE_STEPS))
# few poses are turned into JSON at once; more, and drawn pictures, in a thread
_INLINE_IMAGES = 4
_DRAWN = frozenset(("link_map", "overlay"))

Result = TypeVar("Result")


@dataclass(frozen=True)
class Query:
    """What a request asks for."""

    category: str
    version: str | None
    refine_steps: int
    include: frozenset[str]
    uploads: list[Upload]
    landmarks: str | None = None

    @classmethod
    def of(cls, form: Form) -> Query:
        """The form, checked.

        Raises:
            BadField, BadBoxes, NoImages.
        """
        values = form.fields
        for name in values:
            if name not in _FIELDS:
                raise BadField(name, f"unknown field {name!r}; known are images, {', '.join(_FIELDS)}")
        if not values.get("category"):
            raise BadField("category", "the field category is missing; it names what the pictures show")
        if not form.files:
            raise NoImages("no picture came; send at least one in the field images (curl -F images=@photo.jpg)")
        boxes = parse_boxes(values.get("boxes"), len(form.files))
        uploads = [
            Upload(index, part.filename, bytes(part.data), box)
            for index, (part, box) in enumerate(zip(form.files, boxes, strict=True))
        ]
        return cls(
            values["category"].strip(),
            values.get("version", "").strip() or None,
            _refine_steps(values.get("refine_steps", "")),
            parse_include(values.get("include")),
            uploads,
            values.get("landmarks", "").strip() or None,
        )


def make_router(settings: Settings) -> APIRouter:
    """The route, documented with the limits as set."""
    router = APIRouter(tags=["poses"])

    @router.post(
        "/estimate",
        summary="Estimate poses",
        response_model=Estimate,
        responses=responses(400, 404, 408, 413, 415, 422, 429, 503),
        openapi_extra=estimate_body(settings.max_images),
    )
    async def estimate(request: Request) -> Response:
        """Where the keypoints of a category are in some pictures.

        ```sh
        curl -F category=dog -F images=@one.jpg -F images=@two.png -F include=overlay http://127.0.0.1:8000/estimate
        ```

        A picture of any shape is fitted to the model's square without stretching: the square is centred on the
        picture (or on its box) and as wide as its longer side; what lies outside of the picture is mid-grey.
        Coordinates in the answer are pixels of the picture as uploaded, with its EXIF orientation applied.

        A keypoint's **score** is the share of its attention that lies near it, from 0 to 1: low where the part
        is hidden. `link_map`, `trajectory` and `overlay` are there only where `include` names them, and `landmarks`
        where the field of that name has a set of the version (`POST /priors/{category}/landmarks`).

        When too many pictures wait, the answer is 429 with `Retry-After`.
        """
        return await _estimate(request, gateway_of(request))

    return router


async def _estimate(request: Request, gateway: Gateway) -> Response:
    started = time.perf_counter()
    settings = gateway.settings
    with gateway.budget.hold(body_bytes(request.scope)):
        query = Query.of(await _read(request, settings))
        version = await gateway.io(gateway.versions.version, query.category, query.version)
        _check_memory(query, version)
        landmarks = await gateway.io(gateway.versions.landmarks, version, query.landmarks) if query.landmarks else None
        gateway.batcher.check_room(len(query.uploads))
        decoding = time.perf_counter()
        fitted = await _fit_all(gateway, query.uploads, version.side)
        _check_drawn(settings, query.include, fitted)
        queued = time.perf_counter()
        gateway.metrics.decode_seconds.observe(queued - decoding)
        group = Group(version.category, version.name, version.side, query.refine_steps, "link_map" in query.include)
        ticket = await _unless_gone(request, gateway.batcher.estimate(group, [item.square for item in fitted]))
        answered = time.perf_counter()
        images = await _describe_all(gateway, query, version, fitted, ticket, landmarks)
        timing = {
            "decode": 1e3 * (queued - decoding),
            "queue": max(0.0, 1e3 * (answered - queued) - ticket.model_ms),
            "model": ticket.model_ms,
            "total": 1e3 * (time.perf_counter() - started),
        }
        if query.include & _DRAWN:  # may be long
            body = await gateway.compute(_joined, version, images, timing)
        else:
            body = _joined(version, images, timing)
        return Response(body, media_type="application/json")


async def _read(request: Request, settings: Settings) -> Form:
    """The form, within the time that it may take to arrive: a slow client must not hold its place for ever."""
    try:
        async with asyncio.timeout(BODY_S):
            return await read_form(request, {"images": FileField(settings.max_images, lambda: _too_many(settings))})
    except TimeoutError:
        raise SlowBody(f"the body took longer than {BODY_S:g} s to arrive; send fewer or smaller pictures") from None


async def _fit_all(gateway: Gateway, uploads: list[Upload], side: int) -> list[Fitted]:
    """Decode side by side; the first bad picture ends it."""
    work = [asyncio.ensure_future(gateway.compute(fit, upload, side, gateway.picture_limits)) for upload in uploads]
    try:
        return await asyncio.gather(*work)
    finally:
        for task in work:
            task.cancel()


async def _describe_all(
    gateway: Gateway,
    query: Query,
    version: Version,
    fitted: list[Fitted],
    ticket: Ticket,
    landmarks: LandmarkMaps | None,
) -> list[str]:
    """Each picture's part of the answer as JSON."""

    def part(index: int) -> str:
        limits = gateway.picture_limits
        pose = ticket.poses[index]
        return describe(query.uploads[index], fitted[index], pose, version, query.include, limits, landmarks)

    if len(fitted) <= _INLINE_IMAGES and not query.include & _DRAWN:
        return [part(index) for index in range(len(fitted))]
    return await asyncio.gather(*(gateway.compute(part, index) for index in range(len(fitted))))


def _joined(version: Version, images: list[str], timing: dict[str, float]) -> bytes:
    """The answer; the pictures' parts are JSON already."""
    head = {"category": version.category, "version": version.name}
    tail = {"timing_ms": {name: round(value, 2) for name, value in timing.items()}}
    return f'{json.dumps(head)[:-1]}, "images": [{", ".join(images)}], {json.dumps(tail)[1:]}'.encode()


def _check_memory(query: Query, version: Version) -> None:
    if query.refine_steps and not version.has_memory:
        raise NoMemory(
            f"refine_steps is {query.refine_steps}, and version '{version.name}' of category '{version.category}' was "
            "trained with the method autolink, which has no memory to refine with; leave refine_steps out, or name a "
            "version of the method ppl"
        )


def _check_drawn(settings: Settings, include: frozenset[str], fitted: list[Fitted]) -> None:
    kinds = len(include & _DRAWN)
    pixels = kinds * sum(item.width * item.height for item in fitted)
    if pixels > settings.max_drawn_pixels:
        raise TooManyPixels(
            f"the pictures to draw would have {pixels} pixels and {settings.max_drawn_pixels} are allowed in one "
            "request; send fewer or smaller pictures, or leave link_map and overlay out of include"
        )


def _refine_steps(text: str) -> int:
    text = text.strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) <= MAX_REFINE_STEPS):
        raise BadField("refine_steps", f"refine_steps is {text[:80]!r}; it must be from 0 to {MAX_REFINE_STEPS}")
    return int(text)


def _too_many(settings: Settings) -> TooManyImages:
    return TooManyImages(
        f"more than {settings.max_images} pictures; a request may hold {settings.max_images}, send several requests"
    )


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do something for a client, and stop when it goes away: its pictures make room for others'."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await end((task, gone))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
