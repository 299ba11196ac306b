"""Change jobs as their workers do, beside a gateway that puts running jobs without a worker back into the queue."""

from __future__ import annotations

from service.contract.jobs.store import JobStatus, JobStore

_WORKER = "tests-"


def hold(jobs: JobStore, job_id: str) -> None:
    """Hold the lease of a job for a minute, longer than a test takes on a busy machine."""
    jobs.acquire(job_id, _WORKER, ttl_s=60)


def move(jobs: JobStore, job_id: str, *statuses: JobStatus) -> None:
    """Move a job through statuses; its lease is held while it is running."""
    for status in statuses:
        if status is JobStatus.RUNNING:
            hold(jobs, job_id)
        else:
            jobs.release_leases_of(_WORKER)
        jobs.update(job_id, lambda record, status=status: record.move(status))
