"""Work on one job from taking its lease to its end.

A thread renews the lease, writes progress and polls for cancel and pause. It makes all calls to Redis, so that a slow
or absent server never delays training.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from model.config import SettingError
from model.network.perceptual import WeightsUnavailableError
from model.training.trainer import TrainingDivergedError
from service.contract.durable_files import is_disk_full
from service.contract.errors import (
    DiskFull,
    Diverged,
    JobNotActive,
    NeedsWeights,
    PPLError,
    StoreUnavailable,
    TrainingFailed,
    UnknownJob,
    UnreadableJob,
)
from service.contract.jobs.files import JobFiles
from service.contract.jobs.store import JobRecord, JobStatus, JobStore, Lease, LeaseLost
from service.contract.logs import bind_ids
from service.contract.objects import Replaced
from service.contract.tracing import span
from worker.metrics import TrainingMetrics
from worker.redis_retries import OUTAGES, OutageLog, Result, retry_outages

logger = logging.getLogger(__name__)

Change = Callable[[JobRecord], Any]

_PERIOD_S = 0.5  # how often progress is written and requests are polled
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class Cancelled(Exception):  # noqa: N818 - an event, as LeaseLost
    """The job's owner cancelled it."""


class Stopping(Exception):  # noqa: N818
    """This process is stopping; the job continues later or in another process."""


class Paused(Stopping):
    """The job's owner paused it; this process continues with other jobs."""


class RankCrashed(Exception):  # noqa: N818
    """A training process ended without a report, such as one that was killed; the job resumes from its checkpoint."""


# ends the work on a job that another process continues, or this one later, or none
_LEAVING = (
    *(LeaseLost, JobNotActive, UnknownJob, UnreadableJob, Stopping, RankCrashed),
    *(StoreUnavailable, Replaced),
    *OUTAGES,
)


class Stop:
    """A flag that a signal handler sets when the process should stop, so it takes no lock."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Ask the process to stop."""
        self.requested = True


class HeldJob:
    """Background thread that renews a job's lease, writes progress and polls for cancel and pause.

    The lease is released when the block ends. ``on_failure`` is a change to be written together with a failure;
    ``publish_requested`` says whether a version of the job's present state was requested when it last polled.
    """

    def __init__(self, jobs: JobStore, lease: Lease, stop: Stop) -> None:
        self.job_id = lease.job_id
        self.on_failure: Change | None = None
        self._jobs, self._lease, self._stop = jobs, lease, stop
        self._lost = self._cancelled = self._paused = False
        self.publish_requested = False
        self._pending: Change | None = None
        self._writing = threading.Lock()  # otherwise a late report of the thread could undo a later write
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"job-{self.job_id}", daemon=True)

    def __enter__(self) -> HeldJob:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        try:
            self._lease.release()
        except OUTAGES:
            logger.warning("job=%s: Redis is down; the lease will expire", self.job_id)

    def check(self) -> None:
        """Raise LeaseLost, Cancelled, Stopping or Paused if the work must end; called at every step."""
        if self._lost:
            raise LeaseLost(self.job_id)
        if self._cancelled:
            raise Cancelled(self.job_id)
        if self._stop.requested:
            raise Stopping("the worker stops; the job resumes later")
        if self._paused:
            raise Paused("the job is paused")

    def report(self, change: Change) -> None:
        """Leave a change for the thread to write. A later report or write replaces it."""
        self._pending = change

    def write(self, change: Change) -> JobRecord:
        """Change the record now; while Redis is down, retry until the process is asked to stop. May raise LeaseLost."""
        with self._writing:
            self._pending = None
            return self._retry(lambda: self._jobs.update(self.job_id, change, self._lease))

    def confirm_lease(self) -> None:
        """Renew the lease before a step that can't be undone. Raises the errors of `write`."""
        if not self._retry(self._lease.renew):
            raise LeaseLost(self.job_id)

    def _retry(self, call: Callable[[], Result]) -> Result:
        return retry_outages(call, lambda: self._stop.requested, f"job={self.job_id}")

    def _run(self) -> None:
        renew_at = 0.0
        log = OutageLog(f"job={self.job_id}")
        while not self._done.wait(_PERIOD_S):
            try:
                if time.monotonic() >= renew_at:
                    if not self._lease.renew():
                        raise LeaseLost(self.job_id)
                    renew_at = time.monotonic() + self._lease.ttl_s / 3
                self._cancelled = self._cancelled or self._jobs.is_cancel_requested(self.job_id)
                self._paused = self._jobs.is_pause_requested(self.job_id)
                self.publish_requested = self._jobs.is_publish_requested(self.job_id)
                self._write_report()
                log.log_success()
            except OUTAGES as error:
                log.log_failure(error)
            except Exception as error:  # the work must not continue without a lease
                if not isinstance(error, LeaseLost):
                    logger.exception("job=%s: holding it failed", self.job_id)
                self._lost = True
                return

    def _write_report(self) -> None:
        with self._writing:
            change, self._pending = self._pending, None
            try:
                if change:
                    self._jobs.update(self.job_id, change, self._lease)
            except OUTAGES:
                self._pending = self._pending or change
                raise


def explain_failure(error: BaseException, what: str = "job") -> PPLError:
    """Return the error to show to the owner of a job or dataset."""
    if isinstance(error, PPLError):
        return error
    if isinstance(error, TrainingDivergedError):
        return Diverged(str(error))
    if isinstance(error, WeightsUnavailableError):
        return NeedsWeights(str(error))
    if isinstance(error, SettingError):
        return TrainingFailed(f"a setting of the job is not valid in this release: {error}")
    if is_disk_full(error):
        return DiskFull(f"the server's disk is full; send the {what} again once there is space")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in _NO_MEMORY):
        return TrainingFailed("out of memory; lower batch_size, image_size or base_width, or send smaller pictures")
    return TrainingFailed(f"internal error; the worker's log has the traceback under the {what}'s id")


@dataclass(frozen=True)
class JobTaker:
    """A taker of jobs under a lease, which writes how they ended; ``holder`` is this process's name in leases."""

    jobs: JobStore
    files: JobFiles
    metrics: TrainingMetrics
    holder: str
    stop: Stop

    def take(self, job_id: str, work: Callable[[HeldJob], None]) -> bool:
        """Work on a job if no other process does; return whether it was free.

        ``work`` does it and calls `HeldJob.check` often. Its exception decides what becomes of the job: Cancelled ends
        it, those in ``_LEAVING`` leave it unchanged, and any other error fails it.
        """
        lease = self.jobs.acquire(job_id, self.holder)
        if lease is None:
            logger.info("job=%s: another process works on it", job_id)
            return False
        with bind_ids(job=job_id), HeldJob(self.jobs, lease, self.stop) as held:
            try:
                with span("work on job", [self.jobs.record(job_id).traceparent], job=job_id):
                    self._work_to_end(held, work)
            except _LEAVING as error:
                logger.warning("job=%s: not changed: %s: %s", job_id, type(error).__name__, error)
        return True

    def _work_to_end(self, held: HeldJob, work: Callable[[HeldJob], None]) -> None:
        try:
            if self.jobs.is_cancel_requested(held.job_id):
                raise Cancelled(held.job_id)
            self.files.fetch(held.job_id)
            work(held)
        except _LEAVING:
            raise
        except Cancelled:
            logger.info("job=%s: cancelled", held.job_id)
            self.end(held, lambda record: record.move(JobStatus.CANCELLED))
        except Exception as error:  # the owner must see any failure
            if not isinstance(error, PPLError):
                logger.exception("job=%s: failed", held.job_id)
            self._fail(held, explain_failure(error))

    def end(self, held: HeldJob, change: Change) -> None:
        """Write a change that ends the job, count it and delete its files. Raises the errors of `HeldJob.write`."""
        self.clean_up(held.write(change))

    def clean_up(self, record: JobRecord) -> None:
        """Count a job whose end is written, and delete its files."""
        self.metrics.jobs.labels(str(record.job.status)).inc()
        try:
            self.files.remove(record.job.id)
        except OSError:
            logger.exception("job=%s: files not deleted; the next sweep retries", record.job.id)

    def _fail(self, held: HeldJob, error: PPLError) -> None:
        logger.warning("job=%s: failed: %s (%s)", held.job_id, error.detail, error.code)

        def fail(record: JobRecord) -> None:
            if held.on_failure:
                held.on_failure(record)
            record.fail(error)

        self.end(held, fail)
