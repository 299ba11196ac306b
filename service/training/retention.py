"""Count and list jobs, and remove old records and stale files."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

from service.contract import routing
from service.contract.errors import UnknownJob, UnreadableJob
from service.contract.jobs.files import JobFiles
from service.contract.jobs.job import Job, JobPage, JobStatus
from service.contract.jobs.store import MAX_PAGE, JobStore
from service.http.multipart import seconds_since_change


class JobCounts:
    """The number of jobs of each status. A job that ended is read only once, as its status never changes again.

    Args:
        client: redis.Redis.
    """

    def __init__(self, client: Any, jobs: JobStore) -> None:
        self._redis = client
        self._jobs = jobs
        self._ended: dict[str, JobStatus] = {}

    def count(self) -> dict[JobStatus, int]:
        """Count the jobs of every status, zeros included."""
        ids = {item.decode() for item in self._redis.zrange(routing.JOBS, 0, -1)}
        self._ended = {job_id: status for job_id, status in self._ended.items() if job_id in ids}
        found = {record.job.id: record.job.status for record in self._jobs.records(ids - self._ended.keys())}
        counts = Counter({**self._ended, **found}.values())
        self._ended |= {job_id: status for job_id, status in found.items() if status.ended}
        return {status: counts[status] for status in JobStatus}


def list_jobs(
    jobs: JobStore, limit: int, cursor: str | None, category: str | None, status: JobStatus | None
) -> JobPage:
    """Return a page of the jobs of a category and a status, the newest first. Raise BadCursor."""
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


def trim_jobs(client: Any, jobs: JobStore, max_ended: int, min_age_s: float) -> list[str]:
    """Remove the records of the jobs that ended first, until at most `max_ended` are left.

    Jobs that ended less than `min_age_s` ago by Redis' clock, by which requests' Idempotency-Keys expire, stay even
    beyond that, as do jobs with a pending webhook.

    Args:
        client: redis.Redis.

    Returns:
        The ids of the removed jobs.
    """
    excess = client.zcard(routing.JOBS) - client.scard(routing.ACTIVE_JOBS) - max_ended
    if excess <= 0:
        return []
    needed = {*client.smembers(routing.ACTIVE_JOBS), *client.zrange(routing.WEBHOOKS, 0, -1)}
    ids = [job_id.decode() for job_id in client.zrange(routing.JOBS, 0, -1) if job_id not in needed]
    seconds, microseconds = client.time()
    latest = seconds + microseconds / 1e6 - min_age_s
    ended = sorted((at, job_id) for job_id, at in jobs.ended_at(ids).items() if at <= latest)
    removed = []
    for _, job_id in ended[:excess]:
        with suppress(UnknownJob):  # deleted meanwhile
            jobs.delete(job_id)
            removed.append(job_id)
    return removed


def remove_stale_jobs(files: JobFiles, jobs: JobStore, stale_s: float) -> list[str]:
    """Remove the files of jobs that ended, and of uploads that never became a job, once untouched for `stale_s`.

    A gateway that is killed during an upload leaves such files. Earlier releases staged datasets and imports here too.

    Returns:
        The ids.
    """
    removed = []
    ages = {job_id: seconds_since_change(files.folder(job_id)) for job_id in files.ids()}
    ages |= files.seconds_since_sent()
    for job_id, age_s in sorted(ages.items()):
        if age_s < stale_s:
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
