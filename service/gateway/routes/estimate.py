"""POST /estimate: poses at once, as JSON lines, or in the background."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from service.access.guard import key_id_of
from service.contract.media.pictures import PictureLimits
from service.estimates.estimator import INLINE_POSES, Estimator
from service.estimates.formats.json_lines import MEDIA_TYPES as LINES
from service.estimates.formats.json_lines import LinesResponse, render_lines
from service.estimates.formats.registry import FORMATS
from service.estimates.locating import locate_pictures
from service.estimates.openapi import ANSWERS, BACKGROUND_ANSWER, PARAMETERS, estimate_body
from service.estimates.pictures import Upload
from service.estimates.request import Query, UploadedFiles, read_estimate
from service.estimates.results import Outcome, Results
from service.estimates.schemas import CocoDataset, Estimate
from service.estimates.smoothing import SmoothTracks
from service.estimates.video_frames import read_frames, video_limits
from service.gateway.gateway import CurrentGateway, Gateway, new_router
from service.http.headers import REPLAYED_HEADER, accepted_media_type, responds_async
from service.http.problems import BadField, responses
from service.http.requests import body_bytes
from service.runtime.concurrency import cancel_tasks
from service.runtime.settings import Settings

_VIDEO_TIMEOUT_S = 600.0

Result = TypeVar("Result")


def make_router(settings: Settings) -> APIRouter:
    """Return the route, documented with the configured limits."""
    router = new_router("poses")

    @router.post(
        "/estimate",
        summary="Estimate poses",
        response_model=Estimate | CocoDataset,
        responses={
            200: ANSWERS,
            202: BACKGROUND_ANSWER,
            **responses(404, 503, 504, 507),
        },
        openapi_extra={**estimate_body(settings.max_images), **PARAMETERS},
    )
    async def estimate(request: Request, gateway: CurrentGateway) -> Response:
        """Estimate the keypoints of a category in pictures.

        ```sh
        curl -F category=dog -F images=@one.jpg -F images=@two.png -F include=overlay http://127.0.0.1:8000/estimate
        ```

        Pictures may have any shape. Each is fitted to the model's square without stretching: the square is centred on
        the picture, or on its box, and as wide as the longer side; outside of the picture it is mid-grey. Coordinates
        in the answer are pixels of the uploaded picture, with its EXIF orientation applied.

        A keypoint's **score** is the share of its attention that lies near it, from 0 to 1; it is low where the part
        is hidden. `link_map`, `trajectory`, `reconstructions` and `overlay` are present if `include` names them, and
        `landmarks` if the field `landmarks` names a set of the version (`POST /priors/{category}/landmarks`). Fields
        may also be query parameters, as in `/estimate?landmarks=anatomy`.

        **Surprise** is the distance of a pose from the learned ones: above 1 the picture may not show the category.
        `include=codes` adds the codes that the memory retrieved.

        With `Accept: application/jsonl` (or `application/x-ndjson`) poses are streamed as lines in order of completion:
        a line for each pose with its `index` (and `box`), `{"index": …, "error": …}` for a picture that failed, which
        does not affect the others, and `{"summary": …}` as the last line, with the links.

        Send a **video** in the field `video` instead of `images`: the response has the poses of its frames, or of every
        n-th with `every`, with `frame` and `time_s`, and `errors` for frames without a pose and for a damaged rest of
        the file. A CSV table has no column for errors: the header `PPL-Errors` has their number and the first.

        With `Prefer: respond-async` the response is 202 at once, and the server estimates the poses in the background,
        for many pictures and long videos. The address in `Location` (`GET /estimates/{id}`) has the status and, for a
        day, the result, whose `errors` name the pictures that failed. With an `Idempotency-Key`, the same request can
        be sent again if the response was lost: it finds the estimate that the first one created.

        The response is 429 with `Retry-After` if too many pictures wait, 503 if no worker is running, and 504 if none
        answered in time.
        """
        if responds_async(request.headers):
            shown, replayed = await gateway.arrivals.accept(request, key_id_of(request.scope))
            headers = {"Location": f"/estimates/{shown.id}", "Preference-Applied": "respond-async"}
            if replayed:
                headers[REPLAYED_HEADER] = "true"
            return JSONResponse(shown.model_dump(mode="json"), status_code=202, headers=headers)
        return await _estimate_now(request, gateway)

    return router


async def _estimate_now(request: Request, gateway: Gateway) -> Response:
    started = time.perf_counter()
    settings, threads = gateway.settings, gateway.threads
    lines_type = accepted_media_type(request.headers.get("accept", ""), LINES)
    max_images = settings.max_streamed_images if lines_type else settings.max_images
    async with AsyncExitStack() as held:
        held.enter_context(gateway.budget.hold(body_bytes(request.scope), key_id_of(request.scope)))
        files = UploadedFiles(gateway.estimates, threads.upload, settings.image_max_bytes)
        held.push_async_callback(files.aclose)
        form = await read_estimate(request, max_images, files, keep_images=False)
        video = form.first("video") is not None
        names = [part.filename for part in form.files]
        query = Query.parse(form.fields, names, max_images, settings.max_images, video)
        if lines_type and query.format != "native":
            detail = "which is one document, and Accept names JSON lines; leave one of them out"
            raise BadField("format", f"format is {query.format}, {detail}")
        # a version that was read before needs no thread, only the times of its files
        cached = gateway.versions.find_cached(query.category, query.version)
        version = cached if cached else await threads.io(gateway.versions.version, query.category, query.version)
        query.check_memory(version)
        query, version = query.fit_to(version), query.list_links_of(version)
        landmarks = await threads.io(gateway.versions.landmarks, version, query.landmarks) if query.landmarks else None
        estimator = Estimator(gateway.pipeline, query, version, landmarks)
        if lines_type and query.smoothing:
            raise BadField("smooth", "smooth needs all frames, and JSON lines are sent as they come; send no Accept")
        if query.draws_video:
            raise BadField(
                "include",
                "include names overlay, which for a video is made in the background; send Prefer: respond-async "
                "(ppl estimate --overlay out.mp4 does)",
            )
        if video:
            held.enter_context(gateway.video_slots.hold(1, key_id_of(request.scope)))
            path, limits = gateway.estimates.picture(files.estimate_id, 0), video_limits(settings, _VIDEO_TIMEOUT_S)
            max_poses = settings.max_streamed_images
            frames = read_frames(path, query, version.side, limits, threads, max_poses=max_poses)
            if lines_type:
                # a file that is no video is refused before the response begins
                outcomes = await _peek(estimator.stream(frames))
                return LinesResponse(render_lines(outcomes, version, started), lines_type, held.pop_all())
            found = await _cancel_on_disconnect(request, estimator.estimate_video(frames))
        else:
            uploads = [
                Upload(index, part.filename, partial(bytes, part.data), boxes)
                for index, (part, boxes) in enumerate(zip(form.files, query.boxes, strict=True))
            ]
            if query.locate == "motion":
                uploads = await threads.decode(locate_pictures, uploads, PictureLimits.of(settings), query.is_aligned)
            if lines_type:
                lines = render_lines(estimator.stream(uploads), version, started)
                return LinesResponse(lines, lines_type, held.pop_all())
            found = await _cancel_on_disconnect(request, estimator.estimate(uploads))

        def respond() -> Response:
            outcomes, outliers = found, None
            if query.smoothing:
                tracks = SmoothTracks(found, len(found), len(version.keypoint_names), query.smoothing)
                outcomes, outliers = list(tracks.outcomes()), tracks.outliers
            results = Results.collect(
                *(outcomes, version, query.names, query.boxes, started),
                video=video,
                fail_fast=not video,
                landmarks=landmarks.names if landmarks else (),
                outliers=outliers,
            )
            headers = results.errors_header()
            chosen = FORMATS[query.format]
            return Response(b"".join(chosen.render(results)), media_type=chosen.media_type, headers=headers)

        inline = not video and query.num_poses <= INLINE_POSES and not query.has_pictures
        return respond() if inline else await threads.decode(respond)


async def _peek(outcomes: AsyncGenerator[Outcome]) -> AsyncGenerator[Outcome]:
    """Wait for the first outcome, to raise its error here, and return an iterator of all."""
    first = await anext(outcomes, None)

    async def chain() -> AsyncGenerator[Outcome]:
        async with aclosing(outcomes):
            if first is not None:
                yield first
            async for outcome in outcomes:
                yield outcome

    return chain()


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await something, or cancel it when the client disconnects, so that other requests get its place."""
    task = asyncio.create_task(work)
    disconnect = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await cancel_tasks((task, disconnect))


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
