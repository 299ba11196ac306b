"""The events of a job in a Redis stream, and the pace of earlier jobs, from which a job's duration is estimated.

Events are appended in the step that changes the record, so none is lost or repeated. Ids count from 1 without a gap.
Progress and losses are written PROGRESS_EVENTS times a run; beyond KEPT_EVENTS the oldest events are dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, Field

from service.contract import routing
from service.contract.errors import UnknownJob

from .job import Checkpoint, CheckpointList, Job, Progress, check_job_id, select_losses
from .record import Events, JobRecord

PROGRESS_EVENTS = 200
KEPT_EVENTS = 2000
KEPT_CHECKPOINTS = 200
MAX_EVENTS = 500  # in a page
KEPT_S = 90 * 24 * 3600  # paces
# settings that do not change the time of a step
_IRRELEVANT = frozenset(
    {
        *("steps", "seed", "learning_rate", "weight_decay", "occlusion_start", "history_snapshots", "schedule"),
        *("locate", "align", "labels_fit"),
    }
)


class EventKind(StrEnum):
    """The kind of an event."""

    STATUS = "status"
    PROGRESS = "progress"
    METRIC = "metric"
    CHECKPOINT = "checkpoint"
    PREVIEW = "preview"
    LOG = "log"
    COMPLETED = "completed"


class JobEvent(BaseModel):
    """An event of a job."""

    id: int = Field(description="counts from 1 without a gap; pass it as `after` or `Last-Event-ID`")
    kind: EventKind
    at: AwareDatetime
    data: dict[str, Any] = Field(
        description="status: `status`; progress: as the job's; metric: `step`, the losses by name, `steps_per_s`; "
        "checkpoint: `step`, `saved_at`, `size_bytes`, `losses`; preview: `step`; log: `message`; completed: "
        "`status`, `version`, `error`"
    )


class EventPage(BaseModel):
    """A part of a job's events, the oldest first."""

    items: list[JobEvent]
    has_more: bool = Field(description="whether later events exist already")
    next: int = Field(description="pass it as `after` to get the next page")


def events_of_change(before: Job, record: JobRecord) -> Events:
    """Return the events since a record had the job ``before``; ``completed`` is the last of all."""
    job, events = record.job, record.pending_events.copy()
    moved, stepped = job.status is not before.status, job.progress.step != before.progress.step
    staged = job.progress.stage != before.progress.stage
    if _bucket(job.progress) != _bucket(before.progress) or staged or (moved and stepped):
        events.append((EventKind.PROGRESS, job.progress.model_dump(mode="json")))
        losses = select_losses(job.metrics)
        if stepped and losses:
            speed = {"steps_per_s": job.metrics.get("steps_per_s")}
            events.append((EventKind.METRIC, {"step": job.progress.step, **losses, **speed}))
    if moved:
        events.append((EventKind.STATUS, {"status": job.status}))
        if job.status.ended:
            end = {"status": job.status, "version": job.version}
            events.append((EventKind.COMPLETED, {**end, "error": job.error and job.error.model_dump()}))
    return events


def append_arguments(events: Events) -> list[Any]:
    """Return the arguments of the Lua scripts that append events."""
    encoded = [(kind, json.dumps(data, separators=(",", ":"))) for kind, data in events]
    return [json.dumps(encoded), timestamp(), KEPT_EVENTS, KEPT_CHECKPOINTS]


def timestamp() -> str:
    """Return the current time as an event stores it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class EventLog:
    """A reader of the events and checkpoints of jobs. redis-py's errors pass through."""

    def __init__(self, client: Any) -> None:
        self._redis = client

    def page(self, job_id: str, after: int = 0, limit: int = 100) -> EventPage:
        """Return the events after one, the oldest first. Raises UnknownJob."""
        self._check(job_id)
        entries = self._redis.xrange(routing.events_key(job_id), min=f"{after + 1}-0", count=limit + 1)
        items = [parse_event(entry) for entry in entries[:limit]]
        return EventPage(items=items, has_more=len(entries) > limit, next=items[-1].id if items else after)

    def checkpoints(self, job_id: str) -> CheckpointList:
        """Return the checkpoints of a job, the newest first. Raises UnknownJob."""
        self._check(job_id)
        entries = self._redis.lrange(routing.checkpoints_key(job_id), 0, -1)
        return CheckpointList(items=[Checkpoint.model_validate_json(entry) for entry in reversed(entries)])

    def _check(self, job_id: str) -> None:
        if not self._redis.exists(routing.job_key(check_job_id(job_id))):
            raise UnknownJob(f"no job {job_id[:80]!r}; GET /train-jobs lists them")


def parse_event(entry: tuple[bytes, dict[bytes, bytes]]) -> JobEvent:
    """Parse an entry of the stream."""
    name, fields = entry
    number = int(name.partition(b"-")[0])
    at = datetime.fromisoformat(fields[b"at"].decode())
    return JobEvent(id=number, kind=EventKind(fields[b"kind"].decode()), at=at, data=json.loads(fields[b"data"]))


def _bucket(progress: Progress) -> int:
    return progress.step * PROGRESS_EVENTS // max(1, progress.total_steps)


@dataclass(frozen=True)
class Pace:
    """The speed of a training.

    Attributes:
        step_s: seconds a step.
        late_cost: factor by which a step is slower once parts of its pictures are hidden; None if unknown.
    """

    step_s: float
    late_cost: float | None

    def seconds(self, settings: Mapping[str, Any], steps_done: int = 0) -> float:
        """Return how long training with these settings takes at this pace, from a step on."""
        total = int(settings["steps"])
        left = max(0, total - steps_done)
        late = min(left, max(0.0, total * (1 - float(settings.get("occlusion_start", 1.0)))))
        return self.step_s * (left + late * ((self.late_cost or 1.0) - 1))


class PaceBook:
    """The last pace for each set of settings, in Redis. redis-py's errors pass through."""

    def __init__(self, client: Any) -> None:
        self._redis = client

    def note(self, settings: Mapping[str, Any], pace: Pace) -> None:
        """Store a job's pace. An unknown late_cost leaves the stored one."""
        key = routing.pace_key(_digest(settings))
        values = {"step_s": pace.step_s, **({"late_cost": pace.late_cost} if pace.late_cost else {})}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping=values)
            pipe.expire(key, KEPT_S)
            pipe.execute()

    def of(self, settings: Mapping[str, Any]) -> Pace | None:
        """Return the pace of the last job with these settings, up to steps and seed, if any."""
        step_s, late_cost = self._redis.hmget(routing.pace_key(_digest(settings)), "step_s", "late_cost")
        return Pace(float(step_s), float(late_cost) if late_cost else None) if step_s else None


def _digest(settings: Mapping[str, Any]) -> str:
    relevant = {name: value for name, value in settings.items() if name not in _IRRELEVANT}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:32]
