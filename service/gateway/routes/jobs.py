"""/train-jobs: start, follow, cancel, pause, resume and delete training jobs; the secret of their webhooks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import Annotated, Any

from fastapi import Header, Query, Request
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from service.access.guard import key_id_of
from service.contract.errors import NoBoxes, NoPreview, UnknownCategory, UnknownVersion
from service.contract.jobs.files import BOXES, PREVIEW
from service.contract.jobs.job import CheckpointList, JobPage
from service.contract.jobs.progress import MAX_EVENTS, EventPage
from service.contract.jobs.store import Job, JobStatus
from service.gateway.gateway import CurrentGateway, Gateway, Limit, new_router
from service.http.headers import REPLAYED_HEADER, IdempotencyKey, accepted_media_type, idempotency_key, media_type
from service.http.openapi import TEXT
from service.http.problems import UnsupportedMedia, responses
from service.training.event_stream import MAX_ID, MEDIA_TYPE, parse_last_event_id, stream_events
from service.training.job_intake import accept_training
from service.training.job_request import read_json, read_upload
from service.training.openapi import train_body
from service.training.retention import list_jobs

router = new_router("training")

_READERS = {"application/json": read_json, "multipart/form-data": read_upload}


class WebhookSecret(BaseModel):
    """The secret that signs webhooks."""

    secret: str = Field(
        description="whsec_ and base64, as the libraries of Standard Webhooks take it",
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="],
    )


@router.post(
    "/train-jobs",
    status_code=202,
    summary="Train a category",
    response_model=Job,
    responses=responses(404, 409, 507),
    openapi_extra=train_body(),
)
async def create_job(
    request: Request,
    gateway: CurrentGateway,
    key: IdempotencyKey = None,
) -> Response:
    """Create a job that learns a category's prior from pictures. The response does not wait for it.

    Send an archive as a form, with any setting of the model as a field of that name:

    ```sh
    curl -F category=dog -F archive=@pictures.zip -F steps=2000 http://127.0.0.1:8000/train-jobs
    ```

    or name a folder below the server's data root as JSON. Make it first, here `imports/dog`, and put pictures into it:

    ```sh
    curl --json '{"category": "dog", "folder": "imports/dog"}' http://127.0.0.1:8000/train-jobs
    ```

    or name in `dataset`, in a form or as JSON, a dataset that was sent before; any number of jobs may share one.

    Follow it at the address in `Location`. When it succeeds, its version becomes the category's active one, unless
    `activate` is false or the verdict of its `quality` is failed; `always` makes also a failed one active. The archive
    is checked at once; the pictures in it are read while the job is `validating`, and one that can't be read is named
    in the job's metrics and left out.

    With an `Idempotency-Key`, a client can repeat the request if the response was lost: the same key with the same
    request returns the job that the first one created, with `Idempotent-Replayed: true`; with another request it is
    refused with 422. Keys are scoped to the API key and kept for a day. The dataset or version that the request names
    may have been deleted since.

    With `continue_from`, a version or alias of the category or CATEGORY@VERSION, training starts from that version's
    weights with new schedules, for example on new pictures. Settings that are not sent are those of the version
    (`steps` too); those that determine the model's shape can't change. Keypoints keep their meaning and names;
    landmarks must be fitted again.

    With `webhook_url` the server reports the job's end: a POST of `{"type": "train_job.succeeded", "timestamp": …,
    "data": the job}` (or `…failed`, `…cancelled`), signed by Standard Webhooks (`GET /webhooks/secret`), retried for
    about a day until the response is 2xx. The job's `webhook` has the result.
    """
    kind = media_type(request.headers)
    if kind not in _READERS:
        raise UnsupportedMedia(
            f"the body is {kind[:80] or 'of no media type'}; send multipart/form-data with an archive, "
            "or application/json with a folder; both may name a dataset instead"
        )
    job, replayed = await accept_training(gateway.training, request, _READERS[kind])
    job = await gateway.threads.io(gateway.queue.add_position, job)
    headers = {"Location": f"/train-jobs/{job.id}", **({REPLAYED_HEADER: "true"} if replayed else {})}
    return JSONResponse(job.model_dump(mode="json"), status_code=202, headers=headers)


@router.get("/train-jobs", summary="List training jobs")
async def get_jobs(
    gateway: CurrentGateway,
    limit: Limit = 50,
    cursor: str | None = None,
    category: Annotated[str | None, Query(description="only jobs of this category")] = None,
    status: JobStatus | None = None,
) -> JobPage:
    """Return jobs, newest first. Beyond some thousands (`PPL_ENDED_JOBS_KEPT`) those that ended first are deleted."""
    page = await gateway.threads.io(list_jobs, gateway.jobs, limit, cursor, category, status)
    return page.model_copy(update={"items": await gateway.threads.io(gateway.queue.add_positions, page.items)})


@router.get("/train-jobs/{job_id}", summary="Follow a training job")
async def get_job(gateway: CurrentGateway, job_id: str) -> Job:
    """Return a job.

    `progress.eta_s` is the time to its end in seconds, including the wait; null until the pace of this job, or of an
    earlier one with the same settings, is known. `queue_position` is the position among waiting jobs, 1 for the next.
    `metrics` has the number of pictures, the unreadable files, and the last losses. `error` is the reason of a failure.
    """
    return await gateway.threads.io(gateway.queue.add_position, await gateway.threads.io(gateway.jobs.get, job_id))


@router.post("/train-jobs/{job_id}/cancel", summary="Stop a training job", responses=responses(409))
async def cancel_job(gateway: CurrentGateway, job_id: str) -> Job:
    """Cancel a job. One that is running stops at its next step: its status changes a moment later."""
    job = await gateway.threads.io(gateway.jobs.cancel, job_id)
    if job.status.ended:
        await gateway.threads.io(gateway.files.remove, job_id)
    return job


@router.post("/train-jobs/{job_id}/pause", summary="Pause a training job", responses=responses(409))
async def pause_job(gateway: CurrentGateway, job_id: str) -> Job:
    """Pause a job until it is resumed; its worker continues with others meanwhile.

    A queued job is paused at once. A running job first writes a checkpoint at its next step, so its status changes a
    moment later. A job whose upload is being read is paused after that. A paused job stays paused.
    """
    return await gateway.threads.io(gateway.jobs.pause, job_id)


@router.post("/train-jobs/{job_id}/resume", summary="Resume a training job", responses=responses(409))
async def resume_job(gateway: CurrentGateway, job_id: str) -> Job:
    """Put a paused job back into the queue; it resumes from its checkpoint as if it had never stopped.

    A pause that its worker has not seen yet is withdrawn. A job that is not paused does not change.
    """
    job = await gateway.threads.io(gateway.jobs.resume, job_id)
    await gateway.wake_trainers()
    return await gateway.threads.io(gateway.queue.add_position, job)


@router.post("/train-jobs/{job_id}/publish", summary="Make a version of a running job", responses=responses(409))
async def publish_checkpoint(request: Request, gateway: CurrentGateway, job_id: str, key: IdempotencyKey = None) -> Job:
    """Make a version of what a running job has learned so far, to estimate from while the training goes on.

    Its worker makes it at its next step, together with a checkpoint: a moment later it is the last of the job's
    `checkpoint_versions`, and the job's events say so. It is a version as any other, with its own `quality`, and stays
    until it is deleted; it does not become active by itself. The job trains on, and publishes its own version at its
    end. A job that is not running is refused with 409.

    Sent again with the same `Idempotency-Key`, the request makes no second version.
    """
    return await gateway.threads.io(gateway.jobs.request_publish, job_id, idempotency_key(request))


@router.delete("/train-jobs/{job_id}", status_code=204, summary="Forget a training job", responses=responses(409))
async def delete_job(gateway: CurrentGateway, job_id: str) -> None:
    """Delete the record of a job that ended. The version that it published stays."""
    await gateway.threads.io(gateway.jobs.delete, job_id)


@router.get(
    "/train-jobs/{job_id}/events",
    summary="What happens to a training job",
    response_model=EventPage,
    responses={
        200: {"description": "a page, or the stream where Accept asks for it", "content": {MEDIA_TYPE: TEXT}},
        204: {"description": "Last-Event-ID names the last event of a job that ended: nothing more will come"},
        **responses(400),
    },
)
async def get_events(
    request: Request,
    gateway: CurrentGateway,
    job_id: str,
    after: Annotated[int, Query(ge=0, le=MAX_ID, description="only events later than this id")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_EVENTS, description="events in a page of JSON")] = 100,
    last_id: Annotated[str | None, Header(alias="Last-Event-ID", description="as `after`, to resume a stream")] = None,
) -> Any:
    """Return the events of a job, oldest first: `status`, `progress`, `metric`, `checkpoint`, `preview`,
    `log` and `completed`.

    With `Accept: text/event-stream` the response is a stream of server-sent events as they happen, with comments as
    heartbeats between them. It ends after `completed`. A browser's `EventSource` reconnects by itself and misses no
    event. Otherwise the response is a page of JSON.

    ```sh
    curl -N -H 'Accept: text/event-stream' http://127.0.0.1:8000/train-jobs/JOB/events
    ```

    Ids count from 1. A run has at most 200 events each of progress and of losses; a job keeps its last 2000 events.
    They are deleted with the job's record.
    """
    if accepted_media_type(request.headers.get("accept", ""), (MEDIA_TYPE,)) is None:
        return await gateway.threads.io(gateway.events.page, job_id, after, limit)
    if last_id:  # a browser's is empty before the first event
        after = parse_last_event_id(last_id)
    job = await gateway.threads.io(gateway.jobs.get, job_id)
    if last_id and job.status.ended and not (await gateway.threads.io(gateway.events.page, job_id, after, 1)).items:
        return Response(status_code=204)  # a browser does not reconnect after it
    # a proxy must pass on each event as it comes
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    key_id = key_id_of(request.scope)

    def is_over() -> bool:
        return gateway.shutting_down or (key_id is not None and gateway.keys.is_revoked(key_id))

    with ExitStack() as held:
        held.enter_context(gateway.streams.hold(1, key_id))
        return _Stream(stream_events(gateway.redis, job_id, after, is_over), headers, held.pop_all())


@router.get("/train-jobs/{job_id}/checkpoints", summary="The checkpoints of a training job")
async def get_checkpoints(gateway: CurrentGateway, job_id: str) -> CheckpointList:
    """Return the checkpoints that a job wrote, newest first: step, time, size and the losses at that step.

    A paused or interrupted job resumes from the newest, the only one kept, until the job ends. The last 200
    are listed.
    """
    return await gateway.threads.io(gateway.events.checkpoints, job_id)


@router.get(
    "/train-jobs/{job_id}/preview",
    summary="What a training job has learned so far",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "a PNG"}},
)
async def get_preview(gateway: CurrentGateway, job_id: str) -> Response:
    """Return a picture of the model: up to 16 training pictures with keypoints, links and, at their right, what the
    model reconstructs from a masked picture and the links; and the prior, large.

    It is drawn at the first step, half a minute later and at each checkpoint; each time the job has an event `preview`.
    After the end it is that of the version. Before the first step, and once the version is deleted, the response is 404
    with the code `no_preview`.
    """

    job = await gateway.threads.io(gateway.jobs.get, job_id)
    preview = await gateway.threads.io(_read_file, gateway, job, PREVIEW)
    if preview is None:
        raise NoPreview(f"job {job_id} has no preview: it is drawn at the first step and kept with the version")
    return Response(preview, media_type="image/png", headers={"Cache-Control": "no-cache"})


@router.get(
    "/train-jobs/{job_id}/boxes",
    summary="Where the thing was found in a job's pictures",
    response_class=Response,
    responses={200: {"content": {"text/csv": TEXT}, "description": "a row for each picture"}},
)
async def get_boxes(gateway: CurrentGateway, job_id: str) -> Response:
    """Return the boxes that a job's pictures are cut out by, found by motion or sent, as CSV:
    `image,x,y,width,height,confidence` in pixels of the uploaded picture, and `angle,angle_confidence` if any has an
    angle: the thing's heading in degrees clockwise from up.

    A picture in which nothing was found has a row without numbers. Edit the table and send it back as `boxes` of a job,
    dataset or estimate of the same pictures. Of a video it has the frames that training takes (`frames_per_clip`); for
    all frames, estimate it with `format=boxes`. It is there once the pictures are prepared and, after the end, as long
    as the version is. The response is 404 with the code `no_boxes` where pictures are taken whole.
    """
    job = await gateway.threads.io(gateway.jobs.get, job_id)
    boxes = await gateway.threads.io(_read_file, gateway, job, BOXES)
    if boxes is None:
        if job.status is JobStatus.VALIDATING:
            reason = "its pictures are not prepared yet: wait until it is queued"
        elif job.status.ended and job.started_at is None:
            reason = "it ended before it trained, and its files are deleted"
        elif "located" in job.metrics:
            reason = "they are deleted with the job's files or its version"
        else:
            reason = "its pictures are taken whole: send boxes, or set locate to motion"
        raise NoBoxes(f"job {job_id} has no boxes: {reason}")
    return Response(boxes, media_type="text/csv", headers={"Cache-Control": "no-cache"})


class _Stream(EventSourceResponse):
    """A stream that releases its place when it ends, even if it was never read."""

    def __init__(self, events: AsyncIterator[bytes], headers: dict[str, str], held: ExitStack) -> None:
        super().__init__(events, headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


def _read_file(gateway: Gateway, job: Job, name: str) -> bytes | None:
    """Return a file of an unfinished job, or of the version that it published; None if there is none."""
    with suppress(FileNotFoundError):
        return gateway.files.read(job.id, name)
    with suppress(FileNotFoundError, UnknownCategory, UnknownVersion):
        if job.version:
            return gateway.versions.store.file(job.category, job.version, name).read_bytes()
    return None


@router.get("/webhooks/secret", summary="The secret of webhooks")
async def get_webhook_secret(gateway: CurrentGateway) -> WebhookSecret:
    """Return the secret that signs the webhooks of `POST /train-jobs` (`webhook_url`) by HMAC-SHA256.

    The header `webhook-signature` is `v1,` and the base64 of the HMAC of `webhook-id`, `webhook-timestamp` and the body
    joined by dots (https://www.standardwebhooks.com, whose libraries verify it). The server creates the secret at its
    first start, unless `PPL_WEBHOOK_SECRET` sets it.
    """
    return WebhookSecret(secret=await gateway.threads.io(gateway.webhook_secret))
