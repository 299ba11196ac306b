"""What the gateway does beside serving: it counts jobs, and removes records and files that nobody needs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from service.contract import routing
from service.contract.errors import JobNotEnded, UnknownJob, UnreadableJob
from service.contract.jobs.files import JobFiles
from service.contract.jobs.store import MAX_PAGE, Job, JobPage, JobStatus, JobStore
from service.http.uploads import untouched_s


class JobCounts:
    """Jobs by status. A job that ended is read once only: its status never changes again.

    Args:
        client: a synchronous Redis client.
    """

    def __init__(self, client: Any, jobs: JobStore) -> None:
        self._redis = client
        self._jobs = jobs
        self._ended: dict[str, JobStatus] = {}

    def count(self) -> dict[JobStatus, int]:
        """All statuses with their numbers of jobs, the zeros too."""
        ids = {item.decode() for item in self._redis.zrange(routing.JOBS, 0, -1)}
        self._ended = {job_id: status for job_id, status in self._ended.items() if job_id in ids}
        active: list[JobStatus] = []
        for job_id in ids - self._ended.keys():
            try:
                status = self._jobs.get(job_id).status
            except (UnknownJob, UnreadableJob):  # deleted meanwhile, or of no status that is known here
                continue
            if status.ended:
                self._ended[job_id] = status
            else:
                active.append(status)
        return {**dict.fromkeys(JobStatus, 0), **Counter(self._ended.values()), **Counter(active)}


def list_jobs(
    jobs: JobStore, limit: int, cursor: str | None, category: str | None, status: JobStatus | None
) -> JobPage:
    """A page of the jobs that match, the newest first. Raises BadCursor."""
    if category is None and status is None:
        return jobs.page(limit, cursor)
    found: list[Job] = []
    while True:
        page = jobs.page(MAX_PAGE, cursor)
        for job in page.items:
            if category not in (None, job.category) or status not in (None, job.status):
                continue
            if len(found) == limit:
                return JobPage(items=found, next_cursor=found[-1].id)
            found.append(job)
        cursor = page.next_cursor
        if cursor is None:
            return JobPage(items=found)


def trim_jobs(client: Any, jobs: JobStore, most: int, kept_s: float) -> list[str]:
    """Remove the records of the jobs that ended the longest ago, until so many are left.

    One that ended less than ``kept_s`` ago stays, and one whose end is still to be told at its webhook: beyond
    ``most``, if need be.

    Returns:
        The ids.
    """
    too_many = client.zcard(routing.JOBS) - client.scard(routing.ACTIVE_JOBS) - most
    if too_many <= 0:
        return []
    held = {*client.smembers(routing.ACTIVE_JOBS), *client.zrange(routing.WEBHOOKS, 0, -1)}
    ids = [job_id.decode() for job_id in client.zrange(routing.JOBS, 0, -1) if job_id not in held]
    latest = datetime.now(UTC) - timedelta(seconds=kept_s)
    ended = sorted((at, job_id) for job_id, at in _ended_at(client, ids).items() if at <= latest)
    removed = []
    for _, job_id in ended[:too_many]:
        # deleted meanwhile, or written by a later release
        with suppress(UnknownJob, JobNotEnded, UnreadableJob):
            jobs.delete(job_id)
            removed.append(job_id)
    return removed


def _ended_at(client: Any, ids: Sequence[str]) -> dict[str, datetime]:
    """When jobs ended; those that did not, or whose record can't be read (of a later release?), are left out."""
    found = {}
    for first in range(0, len(ids), MAX_PAGE):
        some = ids[first : first + MAX_PAGE]
        with client.pipeline(transaction=False) as pipe:
            for job_id in some:
                pipe.hget(routing.job_key(job_id), "record")
            for job_id, record in zip(some, pipe.execute(), strict=True):
                with suppress(ValueError, TypeError, KeyError):
                    found[job_id] = datetime.fromisoformat(json.loads(record)["job"]["finished_at"]).astimezone(UTC)
    return found


def remove_stale_jobs(files: JobFiles, jobs: JobStore, stale_s: float) -> list[str]:
    """Remove the files of jobs that ended, and of uploads that never became a job, once untouched for `stale_s`.

    A gateway that was killed during an upload leaves such files; earlier releases kept unfinished datasets and
    imports here as well.

    Returns:
        The ids.
    """
    removed = []
    for job_id in files.ids():
        if untouched_s(files.folder(job_id)) < stale_s:
            continue
        try:
            if not jobs.get(job_id).status.ended:
                continue
        except UnreadableJob:  # it may continue
            continue
        except UnknownJob:
            pass
        files.remove(job_id)
        removed.append(job_id)
    return removed
