"""The one place where training jobs change: their records, leases and cancel flags in Redis.

The record is the truth; a message in the queue only wakes a worker. A process that prepares or
trains a job holds its lease, and every change it makes is refused once the lease is another's.
All changes compare a revision, so that two writers can't overwrite each other.

redis-py's errors pass through: callers decide whether to wait or to answer 503. The store is
safe to share between threads.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis

from service.contract import routing
from service.contract.errors import BadCursor, JobNotActive, JobNotEnded, KeyReused, UnknownJob, UnreadableJob
from service.contract.ids import time_ordered_id
from service.contract.quotas import JobLimits, check_job_limits

from . import scripts
from .events import KEPT_CHECKPOINTS, KEPT_EVENTS, EventKind, Told, Watch, as_json, now
from .job import (
    Continued,
    Job,
    JobError,
    JobPage,
    JobRecord,
    JobSource,
    JobStatus,
    Progress,
    Setting,
    check_job_id,
    is_job_id,
    record_of,
)
from .leases import Lease, LeaseLost
from .webhooks import Delivery

__all__ = [
    "Job",
    "JobError",
    "JobPage",
    "JobRecord",
    "JobSource",
    "JobStatus",
    "JobStore",
    "Lease",
    "LeaseLost",
    "NamedRequest",
    "Progress",
    "Setting",
    "new_job_id",
]

log = logging.getLogger(__name__)

MAX_PAGE = 200


def new_job_id() -> str:
    """22 hex digits that sort by time of creation."""
    return time_ordered_id(22)


@dataclass(frozen=True)
class NamedRequest:
    """A request with an Idempotency-Key.

    Attributes:
        name: the key.
        fingerprint: of everything the request asks for; without spaces.
        ttl_s: how long the key is remembered.
    """

    name: str
    fingerprint: str
    ttl_s: int


class JobStore:
    """The jobs in Redis.

    Args:
        client: redis.Redis that returns bytes (typed Any: redis-py's own types are unions of the
            synchronous and the asynchronous answer).
    """

    def __init__(self, client: Any) -> None:
        self._redis = client
        self._unreadable: set[str] = set()  # told already

    @classmethod
    def from_url(cls, url: str) -> JobStore:
        """A store with a client of its own."""
        return cls(redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=10, health_check_interval=10))

    def create(
        self,
        category: str,
        settings: dict[str, Setting],
        total_steps: int,
        source: JobSource | None = None,
        job_id: str | None = None,
        activate: bool = True,
        request: NamedRequest | None = None,
        owner: str | None = None,
        limits: JobLimits | None = None,
        webhook_url: str | None = None,
        continued: Continued | None = None,
    ) -> Job:
        """A new job, ``validating``; its upload must be on disk by now.

        Args:
            request: the name that its sender gave the request, if any; where one of that name and owner made a job
                before, that job is the answer, as its id tells, and nothing is created.
            owner: id of the API key that asks, if any.
            limits: None for no limit.
            webhook_url: where the job's end is told.
            continued: the version that it goes on from.

        Raises:
            KeyReused: the request of that name was another.
            QueueFull, TooManyJobs: as many as may be have not ended.
        """
        job = Job(
            id=check_job_id(job_id or new_job_id()),
            category=category,
            status=JobStatus.VALIDATING,
            created_at=datetime.now(UTC),
            progress=Progress(total_steps=total_steps),
            settings=settings,
            activate=activate,
            dataset=source.dataset if source else None,
            created_by=owner,
            webhook=Delivery(url=webhook_url) if webhook_url else None,
            continued_from=continued,
        )
        record = JobRecord(job=job, source=source or JobSource())
        keys = [routing.job_key(job.id), routing.JOBS, routing.ACTIVE_JOBS, *_event_keys(job.id)]
        told = as_json([(EventKind.STATUS, {"status": str(job.status)})])
        bounds = (limits.total, limits.per_owner) if limits else (0, 0)
        arguments = [record.model_dump_json(), job.id, *_telling(told), owner or "", *bounds]
        if request is not None:
            keys.append(routing.request_key(request.name, owner))
            arguments += [request.fingerprint, request.ttl_s]
        before = self._redis.eval(scripts.CREATE, len(keys), *keys, *arguments).decode()
        check_job_limits(before, owner, limits)
        if not before or request is None:
            return job
        made, _, fingerprint = before.partition(" ")
        _check_same(request, made, fingerprint)
        return self.get(made)

    def remembers(self, name: str, owner: str | None) -> bool:
        """Whether a request of a name made a job not long ago; the job may be deleted by now."""
        return bool(self._redis.exists(routing.request_key(name, owner)))

    def made_by(self, request: NamedRequest, owner: str | None) -> Job | None:
        """The job that the same request made before; None where there is none, or no more.

        Args:
            owner: id of the API key that asks, if any.

        Raises:
            KeyReused: the request of that name was another.
        """
        made, fingerprint = self._redis.hmget(routing.request_key(request.name, owner), "job", "fingerprint")
        if made is None:
            return None
        try:
            job = self.get(made.decode())
        except UnknownJob:
            return None
        _check_same(request, job.id, fingerprint.decode())
        return job

    def check_room(self, owner: str | None, limits: JobLimits) -> None:
        """Whether another job can be created now; asked before a long upload, and again by :meth:`create`.

        Raises:
            QueueFull, TooManyJobs: as many as may be have not ended.
        """
        arguments = [owner or "", limits.total, limits.per_owner, routing.job_key("")]
        check_job_limits(self._redis.eval(scripts.ROOM, 1, routing.ACTIVE_JOBS, *arguments).decode(), owner, limits)

    def get(self, job_id: str) -> Job:
        """A job. Raises UnknownJob, UnreadableJob."""
        return self.record(job_id).job

    def record(self, job_id: str) -> JobRecord:
        """A job with what only the platform needs. Raises UnknownJob, UnreadableJob."""
        return self._load(job_id)[1]

    def page(self, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Jobs, the newest first, without those whose record can't be read.

        Args:
            limit: 1 to MAX_PAGE.
            cursor: ``next_cursor`` of the page before.

        Raises:
            BadCursor: not one of ours.
        """
        limit = max(1, min(limit, MAX_PAGE))
        if cursor is not None and not is_job_id(cursor):
            raise BadCursor(f"cursor {cursor[:80]!r} was not given out by this list")
        start = f"({cursor}" if cursor else "+"
        ids = self._redis.zrange(routing.JOBS, start, "-", desc=True, bylex=True, offset=0, num=limit + 1)
        records = self._records([item.decode() for item in ids[:limit]])
        more = ids[limit - 1].decode() if len(ids) > limit else None
        return JobPage(items=[record.job for record in records], next_cursor=more)

    def unfinished(self) -> list[JobRecord]:
        """Every job that has not ended, the oldest first, without those whose record can't be read."""
        return self._records(sorted(self.unfinished_ids()))

    def unfinished_ids(self) -> set[str]:
        """The ids of all that have not ended."""
        return {item.decode() for item in self._redis.smembers(routing.ACTIVE_JOBS)}

    def update(
        self, job_id: str, change: Callable[[JobRecord], Any], lease: Lease | None = None, *, unleased: bool = False
    ) -> JobRecord:
        """Read, change and write back; again from the start where somebody else wrote meanwhile.

        Args:
            change: alters the record in place; what it raises ends the update.
            lease: the change counts only while this is held.
            unleased: the change counts only while nobody works on the job.

        Raises:
            UnknownJob, UnreadableJob.
            LeaseLost: the lease is another's, or the job ended meanwhile; nothing was written.
        """
        holder = lease.token if lease else ("-" if unleased else "")
        write = secrets.token_hex(8)
        keys = [
            routing.job_key(job_id),
            routing.ACTIVE_JOBS,
            routing.lease_key(job_id),
            routing.cancel_key(job_id),
            *_event_keys(job_id),
            routing.WEBHOOKS,
        ]
        while True:
            revision, record = self._load(job_id)
            if lease and record.job.status.ended:
                raise LeaseLost(job_id)
            watch = Watch(record)
            change(record)
            arguments = [revision, record.model_dump_json(), holder, int(record.job.status.ended), job_id, write]
            arguments += _telling(watch.events(record))
            arguments.append(time.time() if record.job.webhook and watch.ended(record) else "")
            outcome = self._redis.eval(scripts.UPDATE, len(keys), *keys, *arguments)
            if outcome == scripts.WRITTEN:
                return record
            if outcome == scripts.NOT_HOLDER:
                raise LeaseLost(job_id)

    def cancel(self, job_id: str) -> Job:
        """Stop a job: at once where nobody works on it, else by a flag its worker sees within a few steps.

        Raises:
            UnknownJob.
            JobNotActive: it has ended.
        """
        record = self.record(job_id)
        if record.job.status.ended:
            record.move(JobStatus.CANCELLED)  # raises, and says how it ended
        # the flag first: whoever takes the job up between the two steps sees it
        self._redis.set(routing.cancel_key(job_id), "1", ex=routing.CANCEL_TTL_S)
        try:
            return self.update(job_id, lambda record: record.move(JobStatus.CANCELLED), unleased=True).job
        except LeaseLost:
            return self.get(job_id)

    def cancel_requested(self, job_id: str) -> bool:
        """Whether the job's worker shall stop."""
        return bool(self._redis.exists(routing.cancel_key(check_job_id(job_id))))

    def pause(self, job_id: str) -> Job:
        """Pause a job: at once where it is queued, else its worker does within a few steps.

        One whose upload is still read is paused once that is done. Nothing to do where it is paused already.

        Raises:
            UnknownJob.
            JobNotActive: it has ended.
        """
        record = self.update(job_id, JobRecord.want_pause)  # first: whoever takes it up between the two steps sees it
        if record.job.status is not JobStatus.PAUSED:
            try:
                record = self.update(job_id, JobRecord.pause_if_wanted, unleased=True)
            except LeaseLost:
                record = self.record(job_id)
        return record.job

    def resume(self, job_id: str) -> Job:
        """Put a paused job back into the queue; :meth:`reconcile` sends its message. No harm where it is not paused.

        Raises:
            UnknownJob.
            JobNotActive: it has ended.
        """
        return self.update(job_id, JobRecord.resume).job

    def pause_requested(self, job_id: str) -> bool:
        """Whether the worker that trains the job shall pause it, or it was paused in its absence. Raises UnknownJob."""
        record = self.record(job_id)
        status = record.job.status
        return status is JobStatus.PAUSED or (record.pause_wanted and status is JobStatus.RUNNING)

    def delete(self, job_id: str) -> None:
        """Remove the record of a job that ended. Raises UnknownJob, JobNotEnded."""
        if not self.get(job_id).status.ended:
            raise JobNotEnded(f"job {job_id} has not ended; cancel it first")
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(routing.job_key(job_id), routing.cancel_key(job_id), *_event_keys(job_id))
            pipe.zrem(routing.JOBS, job_id)
            pipe.srem(routing.ACTIVE_JOBS, job_id)
            pipe.zrem(routing.WEBHOOKS, job_id)
            pipe.execute()

    def acquire(self, job_id: str, holder: str, ttl_s: float = routing.LEASE_TTL_S) -> Lease | None:
        """The lease of a job, or None while another process has it. Raises UnknownJob for what can't be an id."""
        key = routing.lease_key(check_job_id(job_id))
        token = f"{holder}:{secrets.token_hex(4)}"
        if self._redis.set(key, token, nx=True, px=int(ttl_s * 1000)):
            return Lease(self._redis, job_id, token, ttl_s)
        return None

    def leased(self, job_id: str) -> bool:
        """Whether some process works on the job."""
        return bool(self._redis.exists(routing.lease_key(check_job_id(job_id))))

    def waiting_ids(self) -> set[str]:
        """Ids of the jobs whose message waits in the training queue (the task's id is the job's)."""
        return set(self.waiting_order())

    def waiting_order(self) -> list[str]:
        """The same, in the order in which workers take them: kombu puts on the left and takes from the right."""
        messages = self._redis.lrange(routing.queue_key("training"), 0, -1)
        return [str(json.loads(message)["headers"]["id"]) for message in reversed(messages)]

    def reconcile(self, send: Callable[[str], Any], *, exclusive: bool = False) -> set[str]:
        """Send the messages of jobs again that would else never be taken up, and end those that wait to be cancelled.

        Jobs whose worker is gone are queued again, or paused where so wanted. Those that are queued and have no message
        waiting get one: at the head of the queue where a worker had them, as they waited their turn before. A message
        too many does no harm: who finds the job leased or ended returns. Those that shall be cancelled were set aside
        by their worker, paused perhaps, before it saw that.

        Args:
            send: puts a job's message into the training queue.
            exclusive: do nothing if another process did it within RECONCILE_EVERY_S.

        Returns:
            The ids sent.
        """
        every_ms = int(routing.RECONCILE_EVERY_S * 900)
        if exclusive and not self._redis.set(routing.RECONCILE_LOCK, "1", nx=True, px=every_ms):
            return set()
        left = [record for record in self.unfinished() if not self.leased(record.job.id)]
        gone = {record.job.id for record in left if self.cancel_requested(record.job.id)}
        for job_id in gone:
            with suppress(JobNotActive, UnknownJob):  # ended or deleted meanwhile
                self.cancel(job_id)
        idle = [self._without_worker(record) for record in left if record.job.id not in gone]
        idle = [record for record in idle if record.job.status is JobStatus.QUEUED]
        waiting = self.waiting_ids() if idle else set()
        lost = [record for record in idle if record.job.id not in waiting]
        for record in lost:
            if not record.ahead:
                send(record.job.id)
        for record in reversed(lost):  # the oldest at the head in the end
            if record.ahead:
                self.send_ahead(record.job.id, send)
        return {record.job.id for record in lost}

    def send_ahead(self, job_id: str, send: Callable[[str], Any]) -> None:
        """Send a job's message to the head of the queue."""
        send(job_id)
        self._redis.eval(scripts.TO_FRONT, 1, routing.queue_key("training"), job_id)

    def _without_worker(self, record: JobRecord) -> JobRecord:
        """A job that nobody has in hand, as it stands then."""
        if record.job.status is not JobStatus.RUNNING:
            return record
        try:
            return self.update(record.job.id, JobRecord.lose_worker, unleased=True)
        except (LeaseLost, UnknownJob):  # somebody has it after all
            return record

    def _load(self, job_id: str) -> tuple[bytes, JobRecord]:
        revision, record = self._redis.hmget(routing.job_key(check_job_id(job_id)), "rev", "record")
        if record is None:
            raise UnknownJob(f"no job {job_id[:80]!r}")
        return revision, record_of(job_id, record)

    def _records(self, ids: Sequence[str]) -> list[JobRecord]:
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hget(routing.job_key(job_id), "record")
            texts = pipe.execute()
        found = []
        for job_id, text in zip(ids, texts, strict=True):
            if text is None:  # deleted meanwhile
                continue
            try:
                found.append(record_of(job_id, text))
            except UnreadableJob as error:  # it must not hold up the others; asked for by itself it says what is wrong
                if job_id not in self._unreadable:
                    log.error("passed by: %s", error.detail)
                self._unreadable.add(job_id)
        return found


def _event_keys(job_id: str) -> list[str]:
    return [routing.events_key(job_id), routing.checkpoints_key(job_id)]


def _telling(told: Told) -> list[Any]:
    """The arguments of a script that tells events."""
    return [json.dumps(told), now(), KEPT_EVENTS, KEPT_CHECKPOINTS]


def _check_same(request: NamedRequest, job_id: str, fingerprint: str) -> None:
    if fingerprint != request.fingerprint:
        raise KeyReused(
            f"the Idempotency-Key {request.name!r} was used by another request, which created job {job_id}; send that "
            "request again, or use another key",
            extra={"job_id": job_id},
        )
