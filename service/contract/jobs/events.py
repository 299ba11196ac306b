"""What happens to a job, one event after the other: made where its record is written, kept in a stream of its own.

An event is appended in the very step that changes the record, so none is lost and none comes twice. Ids count from 1
without a hole. Progress and losses are told PROGRESS_EVENTS times a run, the rest whenever it happens; of more than
KEPT_EVENTS the oldest are dropped.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, Field

from service.contract import routing
from service.contract.errors import UnknownJob

from .job import Checkpoint, CheckpointList, JobRecord, check_job_id, losses_of

PROGRESS_EVENTS = 200
KEPT_EVENTS = 2000
KEPT_CHECKPOINTS = 200
MAX_EVENTS = 500  # in a page

Told = list[tuple[str, str]]


class EventKind(StrEnum):
    """What an event tells."""

    STATUS = "status"
    PROGRESS = "progress"
    METRIC = "metric"
    CHECKPOINT = "checkpoint"
    LOG = "log"
    COMPLETED = "completed"


class JobEvent(BaseModel):
    """Something that happened to a job."""

    id: int = Field(description="counts from 1 without a hole; pass it as `after` or `Last-Event-ID`")
    kind: EventKind
    at: AwareDatetime
    data: dict[str, Any] = Field(
        description="status: `status`; progress: as the job's; metric: `step`, the losses by name, `steps_per_s`; "
        "checkpoint: `step`, `saved_at`, `size_bytes`, `losses`; log: `message`; completed: `status`, `version`, "
        "`error`"
    )


class EventPage(BaseModel):
    """A part of a job's events, the oldest first."""

    items: list[JobEvent]
    has_more: bool = Field(description="whether later events are there already")
    next: int = Field(description="pass it as `after` for what comes next")


class Watch:
    """A record before it is changed, to say afterwards what happened."""

    def __init__(self, record: JobRecord) -> None:
        job = record.job
        self._status = job.status
        self._progress = job.progress.model_copy()

    def ended(self, record: JobRecord) -> bool:
        """Whether the job ended between then and now."""
        return record.job.status.ended and not self._status.ended

    def events(self, record: JobRecord) -> Told:
        """Kind and JSON of each event between then and now; ``completed`` is the last of all."""
        job, before = record.job, self._progress
        told: list[tuple[EventKind, dict[str, Any]]] = [(EventKind(kind), data) for kind, data in record.happened]
        moved = job.status is not self._status
        stepped = job.progress.step != before.step
        if _bucket(job.progress) != _bucket(before) or job.progress.stage != before.stage or (moved and stepped):
            told.append((EventKind.PROGRESS, job.progress.model_dump(mode="json")))
            losses = losses_of(job.metrics)
            if stepped and losses:
                speed = {"steps_per_s": job.metrics.get("steps_per_s")}
                told.append((EventKind.METRIC, {"step": job.progress.step, **losses, **speed}))
        if moved:
            told.append((EventKind.STATUS, {"status": str(job.status)}))
            if job.status.ended:
                end = {"status": str(job.status), "version": job.version}
                told.append((EventKind.COMPLETED, {**end, "error": job.error and job.error.model_dump()}))
        return as_json(told)


class EventLog:
    """The events and checkpoints of jobs, to read. redis-py's errors pass through."""

    def __init__(self, client: Any) -> None:
        self._redis = client

    def page(self, job_id: str, after: int = 0, limit: int = 100) -> EventPage:
        """Events later than one, the oldest first. Raises UnknownJob."""
        self._check(job_id)
        start = f"{after + 1}-0"
        entries = self._redis.xrange(routing.events_key(job_id), min=start, count=limit + 1)
        items = [event_of(entry) for entry in entries[:limit]]
        return EventPage(items=items, has_more=len(entries) > limit, next=items[-1].id if items else after)

    def checkpoints(self, job_id: str) -> CheckpointList:
        """The checkpoints that a job wrote, the newest first. Raises UnknownJob."""
        self._check(job_id)
        entries = self._redis.lrange(routing.checkpoints_key(job_id), 0, -1)
        return CheckpointList(items=[Checkpoint.model_validate_json(entry) for entry in reversed(entries)])

    def _check(self, job_id: str) -> None:
        if not self._redis.exists(routing.job_key(check_job_id(job_id))):
            raise UnknownJob(f"no job {job_id[:80]!r}")


def as_json(told: list[tuple[EventKind, dict[str, Any]]]) -> Told:
    """Events as the scripts take them."""
    return [(str(kind), json.dumps(data, separators=(",", ":"))) for kind, data in told]


def now() -> str:
    """The time of an event."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def event_of(entry: tuple[bytes, dict[bytes, bytes]]) -> JobEvent:
    """An entry of the stream."""
    name, fields = entry
    number = int(name.partition(b"-")[0])
    at = datetime.fromisoformat(fields[b"at"].decode())
    return JobEvent(id=number, kind=EventKind(fields[b"kind"].decode()), at=at, data=json.loads(fields[b"data"]))


def _bucket(progress: Any) -> int:
    return int(progress.step * PROGRESS_EVENTS // max(1, progress.total_steps))
