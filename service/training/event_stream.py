"""Stream a job's events as server-sent events, from the first that the reader lacks to the end of the job."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from service.contract import routing
from service.contract.errors import BadCursor
from service.contract.jobs.progress import MAX_EVENTS, JobEvent, parse_event
from service.runtime.redis_clients import QUEUE_ERRORS

MEDIA_TYPE = "text/event-stream"
MAX_ID = 2**53  # the largest integer that JavaScript represents exactly
_POLL_S = 0.5
HEARTBEAT_S = 10.0
_RETRY_MS = 2000


def parse_last_event_id(text: str) -> int:
    """Parse a Last-Event-ID header. Raise BadCursor unless it can be the id of an event."""
    if not re.fullmatch("[0-9]{1,16}", text) or int(text) > MAX_ID:
        raise BadCursor(f"Last-Event-ID is {text[:80]!r}; expected the id of an event of this job, a whole number")
    return int(text)


async def stream_events(
    client: Any, job_id: str, after: int, is_over: Callable[[], bool], heartbeat_s: float = HEARTBEAT_S
) -> AsyncIterator[bytes]:
    """Yield the stream. It ends after the job's last event, when the job is deleted, and when it `is_over`.

    During a Redis outage only heartbeats come; the events of that time follow.

    Args:
        client: redis.asyncio.Redis.
        after: id of the last event that the reader has.
        is_over: the stream stops when this returns True.
    """
    yield format_sse_event(retry=_RETRY_MS)
    last_sent = time.monotonic()
    while not is_over():
        try:
            events, is_active = await _read_events(client, job_id, after)
        except QUEUE_ERRORS:
            events, is_active = [], True
        for event in events:
            yield format_sse_event(data_str=event.model_dump_json(), event=str(event.kind), id=str(event.id))
            after, last_sent = event.id, time.monotonic()
        if not events:
            if not is_active:
                return
            if time.monotonic() - last_sent >= heartbeat_s:
                yield KEEPALIVE_COMMENT
                last_sent = time.monotonic()
            await asyncio.sleep(min(_POLL_S, heartbeat_s))


async def _read_events(client: Any, job_id: str, after: int) -> tuple[list[JobEvent], bool]:
    """Read the later events, and whether more may follow."""
    # one transaction: the last event of a job is stored by the time the job leaves the active ones
    async with client.pipeline(transaction=True) as pipe:
        pipe.xrange(routing.events_key(job_id), min=f"{after + 1}-0", count=MAX_EVENTS)
        pipe.sismember(routing.ACTIVE_JOBS, job_id)
        entries, is_active = await pipe.execute()
    return [parse_event(entry) for entry in entries], bool(is_active)
