"""A job's events as server-sent events: those there are, then each as it happens, to the end of the job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from service.contract import routing
from service.contract.errors import BadCursor
from service.contract.jobs.events import MAX_EVENTS, JobEvent, event_of
from service.http.negotiation import accepted_media_type
from service.runtime.redis_clients import QUEUE_ERRORS

MEDIA_TYPE = "text/event-stream"
LAST_ID = 2**53  # the largest that JavaScript counts to
_ID_DIGITS = 16  # of the largest
_LOOK_EVERY_S = 0.5
HEARTBEAT_S = 10.0
_COME_BACK_MS = 2000


def wanted(accept: str | None) -> bool:
    """Whether a request's Accept names server-sent events; whoever takes anything gets JSON."""
    return accepted_media_type(accept or "", (MEDIA_TYPE,)) is not None


def last_event_id(text: str) -> int:
    """The number in a header Last-Event-ID. Raises BadCursor."""
    if not (text.isascii() and text.isdigit() and len(text) <= _ID_DIGITS and int(text) <= LAST_ID):
        raise BadCursor(f"Last-Event-ID is {text[:80]!r}; expected the id of an event of this job, a whole number")
    return int(text)


async def follow(
    client: Any, job_id: str, after: int, leaving: Callable[[], bool], heartbeat_s: float = HEARTBEAT_S
) -> AsyncIterator[bytes]:
    """The lines of the stream. It ends after the job's end, or its removal, and where the gateway leaves.

    While Redis is away nothing but heartbeats comes; what happens meanwhile comes afterwards.

    Args:
        client: an asynchronous one of Redis.
        after: id of the last event that the reader has.
        leaving: whether the gateway shall end.
    """
    yield format_sse_event(retry=_COME_BACK_MS)
    spoke = time.monotonic()
    while not leaving():
        try:
            events, alive = await _look(client, job_id, after)
        except QUEUE_ERRORS:
            events, alive = [], True
        for event in events:
            yield format_sse_event(data_str=event.model_dump_json(), event=str(event.kind), id=str(event.id))
            after, spoke = event.id, time.monotonic()
        if not events:
            if not alive:
                return
            if time.monotonic() - spoke >= heartbeat_s:
                yield KEEPALIVE_COMMENT
                spoke = time.monotonic()
            await asyncio.sleep(min(_LOOK_EVERY_S, heartbeat_s))


async def _look(client: Any, job_id: str, after: int) -> tuple[list[JobEvent], bool]:
    """What happened since, and whether more can."""
    # in one step: a job that ended has told so by the time it is no longer among the active
    async with client.pipeline(transaction=True) as pipe:
        pipe.xrange(routing.events_key(job_id), min=f"{after + 1}-0", count=MAX_EVENTS)
        pipe.sismember(routing.ACTIVE_JOBS, job_id)
        entries, active = await pipe.execute()
    return [event_of(entry) for entry in entries], bool(active)
