"""/train-jobs/{id}/events and /checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.sse import EventSourceResponse
from starlette.responses import Response

from service.contract.jobs.job import CheckpointList
from service.contract.jobs.progress import MAX_EVENTS, EventPage
from service.gateway.gateway import gateway_of
from service.http.problems import responses
from service.training.event_stream import MAX_ID, MEDIA_TYPE, accepts_event_stream, parse_last_event_id, stream_events

router = APIRouter(tags=["training"])

_EXAMPLE = (
    "retry: 2000\n\n"
    'event: status\ndata: {"id":3,"kind":"status","at":"2026-11-23T06:45:01.120000Z","data":{"status":"running"}}\n'
    "id: 3\n\n: ping\n\n"
)
_STREAM: dict[str, Any] = {"schema": {"type": "string"}, "example": _EXAMPLE}


@router.get(
    "/train-jobs/{job_id}/events",
    summary="What happens to a training job",
    response_model=EventPage,
    responses={
        200: {"description": "a page, or the stream where Accept asks for it", "content": {MEDIA_TYPE: _STREAM}},
        204: {"description": "Last-Event-ID names the last event of a job that ended: nothing more will come"},
        **responses(400, 404, 422, 503),
    },
)
async def get_events(
    request: Request,
    job_id: str,
    after: Annotated[int, Query(ge=0, le=MAX_ID, description="only events later than this id")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_EVENTS, description="events in a page of JSON")] = 100,
    last_id: Annotated[str | None, Header(alias="Last-Event-ID", description="as `after`, to resume a stream")] = None,
) -> Any:
    """Return the events of a job, oldest first: `status`, `progress`, `metric`, `checkpoint`, `log` and `completed`.

    With `Accept: text/event-stream` the response is a stream of server-sent events as they happen, with comments as
    heartbeats between them. It ends after `completed`. A browser's `EventSource` reconnects by itself and misses no
    event. Otherwise the response is a page of JSON.

    ```sh
    curl -N -H 'Accept: text/event-stream' http://127.0.0.1:8000/train-jobs/JOB/events
    ```

    Ids count from 1. A run has at most 200 events each of progress and of losses; a job keeps its last 2000 events.
    They are deleted with the job's record.
    """
    gateway = gateway_of(request)
    if not accepts_event_stream(request.headers.get("accept")):
        return await gateway.threads.io(gateway.events.page, job_id, after, limit)
    last_id = last_id or None  # empty before the first event
    if last_id is not None:
        after = parse_last_event_id(last_id)
    job = await gateway.threads.io(gateway.jobs.get, job_id)
    over = last_id is not None and job.status.ended
    if over and not (await gateway.threads.io(gateway.events.page, job_id, after, 1)).items:
        return Response(status_code=204)  # a browser does not reconnect after it
    # a proxy must pass on each event as it comes
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return EventSourceResponse(
        stream_events(gateway.redis, job_id, after, lambda: gateway.shutting_down), headers=headers
    )


@router.get(
    "/train-jobs/{job_id}/checkpoints",
    summary="The checkpoints of a training job",
    response_model=CheckpointList,
    responses=responses(404, 503),
)
async def get_checkpoints(request: Request, job_id: str) -> CheckpointList:
    """Return the checkpoints that a job wrote, newest first: step, time, size and the losses at that step.

    A paused or interrupted job resumes from the newest, the only one kept, until the job ends. The last 200
    are listed.
    """
    gateway = gateway_of(request)
    return await gateway.threads.io(gateway.events.checkpoints, job_id)
