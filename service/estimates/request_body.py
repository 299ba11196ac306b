"""The body of POST /estimate, read within its limits; and how it is handed to the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from fastapi import Request
from starlette.responses import JSONResponse, Response

from service.access import guard as access
from service.contract.errors import QueueFull, TooManyImages
from service.contract.quotas import EstimateLimits, PendingEstimate, check_estimate_limits
from service.estimates.background.runner import video_limits
from service.estimates.background.store import EstimateRecord
from service.estimates.schemas import BackgroundEstimate, EstimateProgress, EstimateStatus
from service.gateway.gateway import Gateway
from service.http.body_limits import body_bytes
from service.http.multipart import FileField, Form, read_form
from service.http.negotiation import responds_async
from service.http.problems import BadField, SlowBody

from .query import Query
from .results import Outcome
from .uploads import EstimateIntake
from .video_frames import VideoFrames

BODY_S = 120.0  # how long a body may take to arrive that somebody waits for
_VIDEO_S = 600.0
_LOOK_BYTES = 64 * 2**20  # so much comes of an estimate for the background between two looks at what waits


async def read_estimate(request: Request, most: int, intake: EstimateIntake, *, keep_images: bool) -> Form:
    """The form, within the time that it may take to arrive: a slow client must not hold its place for ever.

    Args:
        most: pictures.
        intake: takes a video, and the pictures where these are to be kept.

    Raises:
        SlowBody, TooManyImages, BadField, and as :func:`~service.http.multipart.read_form`.
    """

    def too_many() -> TooManyImages:
        return TooManyImages(f"more than {most} pictures; a request may hold {most}, send several requests")

    def one_video() -> BadField:
        return BadField("video", "more than one video came; send one")

    fields = {
        "images": FileField(most, too_many, sink_of=intake.sink_of if keep_images else None),
        "video": FileField(1, one_video, sink_of=intake.sink_of),
    }
    try:
        async with asyncio.timeout(None if responds_async(request.headers) else BODY_S):
            form = await read_form(request, fields)
    except TimeoutError:
        raise SlowBody(f"the body took longer than {BODY_S:g} s to arrive; send fewer or smaller pictures") from None
    if form.first("video") and len(form.files) > 1:
        raise BadField("video", "both pictures and a video came; send either")
    if form.first("video") or keep_images:
        await intake.settle(form.files)
    return form


def asked_of(request: Request, form: Form) -> dict[str, str]:
    """The fields of the form, and those in the address, as in ``/estimate?landmarks=NAME``.

    Raises:
        BadField: one came twice, as two values.
    """
    fields = dict(form.fields)
    for name, value in request.query_params.multi_items():
        if fields.setdefault(name, value) != value:
            raise BadField(
                name, f"{name} came twice, as {fields[name][:80]!r} and as {value[:80]!r}, in the form or the address"
            )
    return fields


def frames_of(gateway: Gateway, path: Path, query: Query, side: int, most: int) -> VideoFrames:
    """The frames of a video that somebody waits for.

    Args:
        most: poses.
    """
    limits = video_limits(gateway.settings, _VIDEO_S)
    return VideoFrames(
        path, query.names[0], query.every, query.most_frames(most), side, query.boxes[0], limits, gateway.threads.video
    )


async def first_of(outcomes: AsyncIterator[Outcome]) -> AsyncIterator[Outcome]:
    """The same outcomes, once the first is there; what is raised before it is raised here."""
    first = await anext(outcomes, None)

    async def all_of_them() -> AsyncIterator[Outcome]:
        try:
            if first is not None:
                yield first
            async for outcome in outcomes:
                yield outcome
        finally:
            await outcomes.aclose()  # type: ignore[attr-defined]  # a generator

    return all_of_them()


async def in_background(request: Request, gateway: Gateway) -> Response:
    """Keep a request's files, have them worked on, and say where the poses will be.

    Raises:
        QueueFull: as many wait as may.
        And as a request that is answered at once, where the reason is known without looking at the pictures.
    """
    settings, files, io = gateway.settings, gateway.estimates, gateway.threads.io
    limits = EstimateLimits(
        settings.background_max_waiting,
        settings.background_per_key,
        settings.background_max_bytes,
        settings.background_key_bytes,
    )
    key = access.api_key_of(request.scope)
    owner = key.id if key else None
    held = ExitStack()
    mine = held.enter_context(gateway.arriving.arrive(owner))
    waiting: list[PendingEstimate] = []

    def check(waiting: list[PendingEstimate], coming: int = 0) -> None:
        check_estimate_limits(limits, waiting, gateway.arriving.ahead_of(mine), mine, coming)

    def check_for_good(waiting: list[PendingEstimate]) -> None:
        check(waiting)
        gateway.arriving.arrived(mine)

    async def grown(size: int) -> None:
        nonlocal waiting
        looked, mine.size_bytes = mine.size_bytes // _LOOK_BYTES, size
        if size // _LOOK_BYTES > looked:
            waiting = await io(files.held)
        try:
            check(waiting)
        except QueueFull:  # as things stood a while ago
            waiting = await io(files.held)
            check(waiting)

    intake = EstimateIntake(files, gateway.threads.upload, settings.image_max_bytes, grown)
    try:
        waiting = await io(files.held)
        check(waiting, body_bytes(request.scope) if "content-length" in request.headers else 0)
        form = await read_estimate(request, settings.background_max_images, intake, keep_images=True)
        video = form.first("video") is not None
        names = intake.names
        fields = asked_of(request, form)
        query = Query.of(fields, names, settings.background_max_images, settings.max_images, video)
        version = await io(gateway.versions.version, query.category, query.version)
        query.check_memory(version)
        if query.landmarks:
            await io(gateway.versions.landmarks, version, query.landmarks)
        shown = BackgroundEstimate(
            id=intake.estimate_id,
            status=EstimateStatus.QUEUED,
            category=query.category,
            version=version.name,
            format=query.format,
            created_at=datetime.now(UTC),
            progress=EstimateProgress(total=None if video else len(names)),
            created_by=owner,
        )
        record = EstimateRecord(shown=shown, fields=fields, names=names, video=video, size_bytes=intake.size_bytes)
        await gateway.threads.upload(files.submit, record, check_for_good)
        intake.hand_over()
    finally:
        held.close()
        await intake.close()
    headers = {"Location": f"/estimates/{shown.id}", "Preference-Applied": "respond-async"}
    return JSONResponse(shown.model_dump(mode="json"), status_code=202, headers=headers)
