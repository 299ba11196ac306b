"""POST /estimate: bytes → checked pictures → squares → batch → poses → the answer in pixels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, aclosing
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.estimates.document import ERRORS_HEADER, document, told_in_header
from service.estimates.estimator import Estimator, check_drawn, drawn_pixels, group_of
from service.estimates.formats.json_lines import LinesResponse, check_lines, lines, wanted_lines
from service.estimates.formats.registry import MEDIA_TYPES, written
from service.estimates.pictures import Answer, Fitted, Upload, describe
from service.estimates.query import Query
from service.estimates.request_body import asked_of, first_of, frames_of, in_background, read_estimate
from service.estimates.results import Outcome, Results
from service.estimates.schemas import CocoDataset, Estimate
from service.estimates.uploads import EstimateIntake
from service.estimates.video_frames import with_failure
from service.gateway.gateway import Gateway, gateway_of
from service.gateway.openapi import background_answer, estimate_answers, estimate_body, estimate_parameters
from service.http.body_limits import body_bytes
from service.http.negotiation import responds_async
from service.http.problems import responses
from service.runtime.settings import Settings
from service.runtime.threads import cancel_tasks
from service.versions.landmarks import LandmarkMaps
from service.versions.reader import Version

# few poses are turned into JSON at once; more, and drawn pictures, in a thread
_INLINE_IMAGES = 4

Result = TypeVar("Result")


def make_router(settings: Settings) -> APIRouter:
    """The route, documented with the limits as set."""
    router = APIRouter(tags=["poses"])

    @router.post(
        "/estimate",
        summary="Estimate poses",
        response_model=Estimate | CocoDataset,
        responses={
            200: estimate_answers(),
            202: background_answer(),
            **responses(400, 404, 408, 413, 415, 422, 429, 503, 504, 507),
        },
        openapi_extra={**estimate_body(settings.max_images), **estimate_parameters()},
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
        where the field of that name has a set of the version (`POST /priors/{category}/landmarks`). A field may stand
        in the address as well, as in `/estimate?landmarks=anatomy`.

        **Surprise** says how far a pose is from the poses that were learned: above 1 the picture may not show the
        category at all. `include=codes` adds what the memory retrieved.

        With `Accept: application/jsonl` (or `application/x-ndjson`) the poses come line by line as they are found, in
        order of completion: a line a pose with its `index` (and `box`), `{"index": …, "error": …}` for a picture that
        failed, which does not hinder the others, and `{"summary": …}` as the last line, with the links that all share.

        A **video** comes in the field `video` instead of `images`: the poses of its frames, or of each `every`-th, with
        `frame` and `time_s`, and in `errors` why a frame, or the rest of the file, gave none. A table has no place for
        that: the header `PPL-Errors` says how many there are, and the first.

        With `Prefer: respond-async` the answer is 202 at once, and the poses are at the address in `Location` when they
        are found (`GET /estimates/{id}`), for a day: for many pictures and long videos. Pictures that fail are named in
        `errors` then, and do not hinder the others.

        When too many pictures wait, the answer is 429 with `Retry-After`; when no worker lives, 503; when none answered
        in time, 504.
        """
        return await _estimate(request, gateway_of(request))

    return router


async def _estimate(request: Request, gateway: Gateway) -> Response:
    started = time.perf_counter()
    if responds_async(request.headers):
        return await in_background(request, gateway)
    settings = gateway.settings
    lines_type = wanted_lines(request.headers.get("accept", ""))
    most = settings.max_streamed_images if lines_type else settings.max_images
    async with AsyncExitStack() as held:
        held.enter_context(gateway.budget.hold(body_bytes(request.scope)))
        intake = EstimateIntake(gateway.estimates, gateway.threads.upload, settings.image_max_bytes)
        held.push_async_callback(intake.close)
        form = await read_estimate(request, most, intake, keep_images=False)
        video = form.first("video") is not None
        names = [part.filename for part in form.files]
        query = Query.of(asked_of(request, form), names, most, settings.max_images, video)
        if lines_type:
            check_lines(query.format)
        version = await find_version(gateway, query)
        query.check_memory(version)
        landmarks = (
            await gateway.threads.io(gateway.versions.landmarks, version, query.landmarks) if query.landmarks else None
        )
        estimator = Estimator(gateway, query, version, landmarks)
        if video:
            held.enter_context(gateway.video_slots.take())
            path = gateway.estimates.picture(intake.estimate_id, 0)
            frames = frames_of(gateway, path, query, version.side, settings.max_streamed_images)
            outcomes = with_failure(estimator.outcomes(frames), frames)
            if not lines_type:
                return await _unless_gone(request, _frames_answered(gateway, query, version, estimator, outcomes))
            first = await first_of(outcomes)  # what is no video is refused while a refusal can be sent
            return LinesResponse(lines(first, version, started), lines_type, held.pop_all())
        uploads = [
            Upload(index, part.filename, partial(bytes, part.data), boxes)
            for index, (part, boxes) in enumerate(zip(form.files, query.boxes, strict=True))
        ]
        if lines_type:
            return LinesResponse(lines(estimator.outcomes(uploads), version, started), lines_type, held.pop_all())
        gateway.batcher.check_room(query.num_poses)
        return await _answered(request, gateway, query, version, landmarks, uploads, started)


async def find_version(gateway: Gateway, query: Query) -> Version:
    """The version that a request means; one that was looked up before takes no thread, but some looks at the disk."""
    found: Version | None = gateway.versions.find_cached(query.category, query.version)
    if found is None:
        found = await gateway.threads.io(gateway.versions.version, query.category, query.version)
    assert found is not None
    return found


async def _frames_answered(
    gateway: Gateway, query: Query, version: Version, estimator: Estimator, outcomes: AsyncIterator[Outcome]
) -> Response:
    """The poses of a video's frames as one document; frames that gave none are named in it."""
    started = time.perf_counter()
    found: list[Outcome] = []
    some = False
    async with aclosing(outcomes):  # type: ignore[type-var]  # a generator
        async for outcome in outcomes:
            found.append(outcome)
            some = some or not outcome.error
            if estimator.down and not some:
                raise estimator.down
    found.sort(key=lambda outcome: outcome.index)
    body, errors = await gateway.threads.decode(document, query, version, started, found)
    headers = {ERRORS_HEADER: told_in_header(errors)} if errors else {}
    return Response(body, media_type=MEDIA_TYPES[query.format], headers=headers)


async def _answered(
    request: Request,
    gateway: Gateway,
    query: Query,
    version: Version,
    landmarks: LandmarkMaps | None,
    uploads: list[Upload],
    started: float,
) -> Response:
    """All poses as one document, or the first error."""
    decoding = time.perf_counter()
    with gateway.batcher.coming(query.num_poses) as coming:
        fitted = await _fit_all(gateway, uploads, version.side)
        check_drawn(gateway.settings, drawn_pixels(query, fitted))
        queued = time.perf_counter()
        gateway.metrics.decode_seconds.observe(queued - decoding)
        squares = [item.square for item in fitted]
        ticket = await _unless_gone(request, gateway.batcher.estimate(group_of(query, version), squares, coming))
    answered = time.perf_counter()
    timing = {
        "decode": 1e3 * (queued - decoding),
        "queue": max(0.0, 1e3 * (answered - queued) - ticket.model_ms),
        "model": ticket.model_ms,
    }

    def part(place: int) -> Answer:
        item, limits = fitted[place], gateway.picture_limits
        pose = ticket.poses[place]
        return describe(uploads[item.index].read, item, pose, version, query.include, limits, landmarks)

    few = len(fitted) <= _INLINE_IMAGES and not query.kinds_drawn
    if few:
        answers = [part(place) for place in range(len(fitted))]
    else:
        answers = await asyncio.gather(*(gateway.threads.decode(part, place) for place in range(len(fitted))))
    timing["total"] = 1e3 * (time.perf_counter() - started)
    results = Results(
        version, query.names, query.boxes, [Outcome(answer["index"], [answer]) for answer in answers], timing
    )
    body = written(results, query.format) if few else await gateway.threads.decode(written, results, query.format)
    return Response(body, media_type=MEDIA_TYPES[query.format])


async def _fit_all(gateway: Gateway, uploads: list[Upload], side: int) -> list[Fitted]:
    """Decode side by side; the first bad picture ends it."""
    work = [
        asyncio.ensure_future(gateway.threads.decode(upload.fit, side, gateway.picture_limits)) for upload in uploads
    ]
    try:
        return list(chain.from_iterable(await asyncio.gather(*work)))
    finally:
        for task in work:
            task.cancel()


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
        await cancel_tasks((task, gone))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
