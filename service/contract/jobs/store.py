"""Training jobs in Redis: records, leases and cancel flags.

The record is the truth; a message in the queue only wakes a worker. A process that prepares or trains a job holds its
lease, and its changes are refused once it has lost the lease. Every change compares a revision, so that two writers
can't overwrite each other. redis-py's errors pass through. The store is safe to share between threads.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from service.contract import routing
from service.contract.errors import BadCursor, JobNotActive, JobNotEnded, KeyReused, UnknownJob, UnreadableJob
from service.contract.quotas import JobLimits, check_job_limits
from service.contract.routing import time_ordered_id
from service.contract.tracing import traceparent

from . import scripts
from .job import Job as Job
from .job import JobPage, Progress, check_job_id, is_job_id
from .job import JobStatus as JobStatus
from .progress import EventKind, append_arguments, events_of_change
from .record import JobRecord as JobRecord
from .record import JobSource as JobSource
from .record import NamedRequest as NamedRequest
from .record import NewJob as NewJob
from .record import parse_record
from .webhooks import Delivery

log = logging.getLogger(__name__)

MAX_PAGE = 200


def new_job_id() -> str:
    """Return 22 hex digits that sort by time of creation."""
    return time_ordered_id(22)


class LeaseLost(Exception):  # noqa: N818 - what happened, as in errors.py
    """Another process holds the lease: stop, and write nothing."""


class Lease:
    """An expiring lock on a job; renew it before its TTL ends."""

    def __init__(self, client: Any, job_id: str, token: str, ttl_s: float) -> None:
        self._redis = client
        self.job_id = job_id
        self.token = token
        self.ttl_s = ttl_s

    def renew(self) -> bool:
        """Extend the lease, also after it expired if it is free. Return False if another process holds it."""
        key, ttl_ms = routing.lease_key(self.job_id), int(self.ttl_s * 1000)
        return bool(self._redis.eval(scripts.RENEW, 1, key, self.token, ttl_ms))

    def release(self) -> None:
        """Release the lease if it is still held."""
        self._redis.eval(scripts.RELEASE, 1, routing.lease_key(self.job_id), self.token)


class JobStore:
    """The jobs in Redis.

    Args:
        client: redis.Redis that returns bytes (Any, because redis-py's types also cover its asynchronous client).
    """

    def __init__(self, client: Any) -> None:
        self._redis = client
        self._unreadable: set[str] = set()  # logged already

    def create(self, new: NewJob, request: NamedRequest | None = None, limits: JobLimits = JobLimits()) -> Job:
        """Create a job in the status ``validating``; its upload must be on disk already.

        Args:
            request: if the same request of the same owner created a job before, return that job instead.

        Raises:
            KeyReused: the Idempotency-Key was used by another request.
            QueueFull, TooManyJobs: the limit on unfinished jobs is reached.
        """
        job = Job(
            id=check_job_id(new.job_id or new_job_id()),
            category=new.category,
            status=JobStatus.VALIDATING,
            created_at=datetime.now(UTC),
            progress=Progress(total_steps=new.total_steps),
            settings=new.settings,
            activate=new.activate,
            dataset=new.source.dataset,
            created_by=new.owner,
            webhook=Delivery(url=new.webhook_url) if new.webhook_url else None,
            continued_from=new.continued_from,
        )
        record = JobRecord(job=job, source=new.source, traceparent=traceparent())
        keys = [routing.job_key(job.id), routing.JOBS, routing.ACTIVE_JOBS, *_event_keys(job.id)]
        events = append_arguments([(EventKind.STATUS, {"status": job.status})])
        arguments = [record.model_dump_json(), job.id, *events, new.owner or "", limits.total, limits.per_owner]
        if request is not None:
            keys.append(routing.request_key(request.name, new.owner))
            arguments += [request.fingerprint, request.ttl_s]
        answer = self._redis.eval(scripts.CREATE, len(keys), *keys, *arguments).decode()
        check_job_limits(answer, new.owner, limits)
        if not answer or request is None:
            return job
        earlier_id, _, fingerprint = answer.partition(" ")
        _check_same(request, earlier_id, fingerprint)
        return self.get(earlier_id)

    def has_request(self, name: str, owner: str | None) -> bool:
        """Return whether a request of this name created a job recently; it may be deleted by now."""
        return bool(self._redis.exists(routing.request_key(name, owner)))

    def find_by_request(self, request: NamedRequest, owner: str | None) -> Job | None:
        """Return the job that the same request created before, if it still exists. Raises KeyReused."""
        job_id, fingerprint = self._redis.hmget(routing.request_key(request.name, owner), "job", "fingerprint")
        if job_id is None:
            return None
        with suppress(UnknownJob):
            job = self.get(job_id.decode())
            _check_same(request, job.id, fingerprint.decode())
            return job
        return None

    def check_room(self, owner: str | None, limits: JobLimits) -> None:
        """Raise QueueFull or TooManyJobs unless another job may be created; for use before a long upload."""
        arguments = [owner or "", limits.total, limits.per_owner, routing.job_key("")]
        check_job_limits(self._redis.eval(scripts.ROOM, 1, routing.ACTIVE_JOBS, *arguments).decode(), owner, limits)

    def get(self, job_id: str) -> Job:
        """Return a job. Raises UnknownJob, UnreadableJob."""
        return self.record(job_id).job

    def record(self, job_id: str) -> JobRecord:
        """Return a job's record. Raises UnknownJob, UnreadableJob."""
        return self._load(job_id)[1]

    def page(self, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Return jobs, the newest first, without unreadable ones. Raises BadCursor.

        Args:
            cursor: ``next_cursor`` of the page before.
        """
        if cursor is not None and not is_job_id(cursor):
            raise BadCursor(f"cursor {cursor[:80]!r} is not valid; send the next_cursor of a page of this list")
        start = f"({cursor}" if cursor else "+"
        ids = self._redis.zrange(routing.JOBS, start, "-", desc=True, bylex=True, offset=0, num=limit + 1)
        records = self.records([item.decode() for item in ids[:limit]])
        next_cursor = ids[limit - 1].decode() if len(ids) > limit else None
        return JobPage(items=[record.job for record in records], next_cursor=next_cursor)

    def list_unfinished(self) -> list[JobRecord]:
        """Return the records of unfinished jobs, the oldest first, without unreadable ones."""
        return list(self.records(sorted(self.unfinished_ids())))

    def records(self, ids: Iterable[str]) -> Iterator[JobRecord]:
        """Yield the records of jobs, without deleted and unreadable ones."""
        ids = list(ids)
        for first in range(0, len(ids), MAX_PAGE):
            batch = ids[first : first + MAX_PAGE]
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in batch:
                    pipe.hget(routing.job_key(job_id), "record")
                texts = pipe.execute()
            for job_id, text in zip(batch, texts, strict=True):
                if text is None:  # deleted meanwhile
                    continue
                try:
                    yield parse_record(job_id, text)
                except UnreadableJob as error:  # it must not block the others
                    if job_id not in self._unreadable:
                        log.error("job skipped: job=%s %s", job_id, error.detail)
                    self._unreadable.add(job_id)

    def ended_at(self, ids: Iterable[str]) -> dict[str, float]:
        """Return when jobs ended, in seconds since 1970 by Redis' clock, without unfinished and unreadable ones."""
        jobs = [record.job for record in self.records(ids)]
        with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hget(routing.job_key(job.id), "ended_at")  # an earlier release did not store it
            times = pipe.execute()
        return {
            job.id: float(at) if at else job.finished_at.timestamp()
            for job, at in zip(jobs, times, strict=True)
            if job.finished_at is not None
        }

    def unfinished_ids(self) -> set[str]:
        """Return the ids of unfinished jobs."""
        return {item.decode() for item in self._redis.smembers(routing.ACTIVE_JOBS)}

    def update(
        self, job_id: str, change: Callable[[JobRecord], Any], lease: Lease | None = None, *, unleased: bool = False
    ) -> JobRecord:
        """Read, change and write a record, and start again if another writer came in between.

        Args:
            change: alters the record in place; an error from it ends the update.
            lease: write only while this lease is held.
            unleased: write only while no process holds the job's lease.

        Raises:
            UnknownJob, UnreadableJob.
            LeaseLost: the lease is held by another process, or the job ended; nothing was written.
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
            before = record.job.model_copy(deep=True)
            change(record)
            arguments = [revision, record.model_dump_json(), holder, int(record.job.status.ended), job_id, write]
            arguments += append_arguments(events_of_change(before, record))
            has_ended = record.job.status.ended and not before.status.ended
            arguments.append("due" if record.job.webhook and has_ended else "")
            outcome = self._redis.eval(scripts.UPDATE, len(keys), *keys, *arguments)
            if outcome == scripts.WRITTEN:
                return record
            if outcome == scripts.NOT_HOLDER:
                raise LeaseLost(job_id)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it has no worker, else by a flag that its worker polls.

        Raises UnknownJob, JobNotActive.
        """
        record = self.record(job_id)
        if record.job.status.ended:
            record.move(JobStatus.CANCELLED)  # raises JobNotActive
        # set the flag first: a worker that takes the job between the two steps must see it
        self._redis.set(routing.cancel_key(job_id), "1", ex=routing.CANCEL_TTL_S)
        try:
            return self.update(job_id, lambda record: record.move(JobStatus.CANCELLED), unleased=True).job
        except LeaseLost:
            return self.get(job_id)

    def is_cancel_requested(self, job_id: str) -> bool:
        """Return whether the job's cancellation was requested."""
        return bool(self._redis.exists(routing.cancel_key(check_job_id(job_id))))

    def pause(self, job_id: str) -> Job:
        """Pause a job: at once if it is queued, else its worker does within a few steps. Idempotent.

        A job whose upload is being prepared is paused when that is done. Raises UnknownJob, JobNotActive.
        """
        # request it first: a worker that takes the job between the two steps must see it
        self.update(job_id, JobRecord.request_pause)
        try:
            return self.update(job_id, JobRecord.pause_if_requested, unleased=True).job
        except LeaseLost:
            return self.get(job_id)

    def resume(self, job_id: str) -> Job:
        """Put a paused job back into the queue; :meth:`reconcile` sends its message. Idempotent.

        Raises UnknownJob, JobNotActive.
        """
        return self.update(job_id, JobRecord.resume).job

    def is_pause_requested(self, job_id: str) -> bool:
        """Return whether a pause is requested or done, so that the job's worker must stop. Raises UnknownJob."""
        record = self.record(job_id)
        status = record.job.status
        return status is JobStatus.PAUSED or (record.pause_wanted and status is JobStatus.RUNNING)

    def request_publish(self, job_id: str, key: str | None = None) -> Job:
        """Request a version of what a running job has learned so far; its worker makes it within a few steps.

        Idempotent for an Idempotency-Key. Raises UnknownJob, JobNotActive, and Conflict for a job that is not running.
        """
        return self.update(job_id, lambda record: record.request_publish(key)).job

    def is_publish_requested(self, job_id: str) -> bool:
        """Return whether a version of what the job has learned so far is requested. Raises UnknownJob."""
        return self.record(job_id).publish_wanted

    def delete(self, job_id: str) -> None:
        """Delete the record of a job that ended. Raises UnknownJob, JobNotEnded."""
        if not self.get(job_id).status.ended:
            raise JobNotEnded(f"job {job_id} has not ended; cancel it first")
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(routing.job_key(job_id), routing.cancel_key(job_id), *_event_keys(job_id))
            pipe.zrem(routing.JOBS, job_id)
            pipe.srem(routing.ACTIVE_JOBS, job_id)
            pipe.zrem(routing.WEBHOOKS, job_id)
            pipe.execute()

    def acquire(self, job_id: str, holder: str, ttl_s: float = routing.LEASE_TTL_S) -> Lease | None:
        """Take the lease of a job; None if another process holds it. Raises UnknownJob for an invalid id."""
        key = routing.lease_key(check_job_id(job_id))
        token = f"{holder}:{secrets.token_hex(4)}"
        if self._redis.set(key, token, nx=True, px=int(ttl_s * 1000)):
            return Lease(self._redis, job_id, token, ttl_s)
        return None

    def is_leased(self, job_id: str) -> bool:
        """Return whether a process holds the job's lease."""
        return bool(self._redis.exists(routing.lease_key(check_job_id(job_id))))

    def release_leases_of(self, prefix: str) -> list[str]:
        """Release the leases whose holder's id begins with `prefix`, and return the ids of their jobs."""
        freed = []
        for job_id in sorted(self.unfinished_ids()):
            token = self._redis.get(routing.lease_key(job_id))
            if token and token.decode().startswith(prefix):
                Lease(self._redis, job_id, token.decode(), routing.LEASE_TTL_S).release()
                freed.append(job_id)
        return freed

    def waiting_order(self) -> list[str]:
        """Return the ids of jobs whose message is in the training queue, the next one first."""
        # kombu pushes on the left and pops from the right; a task's id is its job's
        messages = self._redis.lrange(routing.queue_key("training"), 0, -1)
        return [str(json.loads(message)["headers"]["id"]) for message in reversed(messages)]

    def reconcile(self, send: Callable[[str], Any], *, exclusive: bool = False) -> set[str]:
        """Send lost messages again, requeue jobs whose worker crashed, and cancel unleased jobs as requested.

        A queued job without a message gets one: at the head of the queue if a worker had the job before. A superfluous
        message does no harm: a worker ignores it if the job is leased or ended.

        Args:
            send: puts a job's message into the training queue.
            exclusive: do nothing if another process reconciled within RECONCILE_EVERY_S.

        Returns:
            The ids of the jobs whose messages were sent.
        """
        every_ms = int(routing.RECONCILE_EVERY_S * 900)
        if exclusive and not self._redis.set(routing.RECONCILE_LOCK, "1", nx=True, px=every_ms):
            return set()
        left = [record for record in self.list_unfinished() if not self.is_leased(record.job.id)]
        # their worker put them back, or paused them, before it saw the request
        cancelled = {record.job.id for record in left if self.is_cancel_requested(record.job.id)}
        for job_id in cancelled:
            with suppress(JobNotActive, UnknownJob):  # ended or deleted meanwhile
                self.cancel(job_id)
        idle = [self._requeue_if_lost(record) for record in left if record.job.id not in cancelled]
        idle = [record for record in idle if record.job.status is JobStatus.QUEUED]
        waiting = set(self.waiting_order()) if idle else set()
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

    def _requeue_if_lost(self, record: JobRecord) -> JobRecord:
        """Return the record of an unleased job, put back into the queue if it was running."""
        if record.job.status is not JobStatus.RUNNING:
            return record
        try:
            return self.update(record.job.id, JobRecord.handle_lost_worker, unleased=True)
        except (LeaseLost, UnknownJob):  # a worker has it after all
            return record

    def _load(self, job_id: str) -> tuple[bytes, JobRecord]:
        revision, record = self._redis.hmget(routing.job_key(check_job_id(job_id)), "rev", "record")
        if record is None:
            raise UnknownJob(f"no job {job_id[:80]!r}; GET /train-jobs lists them")
        return revision, parse_record(job_id, record)


def _event_keys(job_id: str) -> list[str]:
    return [routing.events_key(job_id), routing.checkpoints_key(job_id)]


def _check_same(request: NamedRequest, job_id: str, fingerprint: str) -> None:
    if fingerprint != request.fingerprint:
        raise KeyReused(
            f"the Idempotency-Key {request.name!r} was used by another request, which created job {job_id}; send that "
            "request again, or use another key",
            extra={"job_id": job_id},
        )
