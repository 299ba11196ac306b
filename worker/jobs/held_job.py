"""A job that this process works on: a thread renews its lease, writes progress and polls for cancel and pause.

The thread makes all calls to Redis, so that a slow or absent server never delays training.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from service.contract.jobs.store import JobRecord, JobStore, Lease, LeaseLost
from worker.redis_retries import OUTAGES, OutageLog, Result, retry_outages

logger = logging.getLogger(__name__)

Change = Callable[[JobRecord], Any]

_PERIOD_S = 0.5  # how often progress is written and requests are polled


class Cancelled(Exception):  # noqa: N818 - an event, as LeaseLost
    """The job's owner cancelled it."""


class Stopping(Exception):  # noqa: N818
    """This process is stopping; the job continues later or in another process."""


class Paused(Stopping):
    """The job's owner paused it; this process continues with other jobs."""


class RankCrashed(Exception):  # noqa: N818
    """A training process ended without a report, such as one that was killed; the job resumes from its checkpoint."""


class Stop:
    """A flag that a signal handler sets when the process should stop, so it takes no lock."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Ask the process to stop."""
        self.requested = True


class HeldJob:
    """Background thread that renews a job's lease, writes progress and polls for cancel and pause.

    Args:
        lease: held when the block begins; released when it ends.
        stop: of the process.

    Attributes:
        on_failure: a change that is written together with the job's failure.
    """

    def __init__(self, jobs: JobStore, lease: Lease, stop: Stop) -> None:
        self.job_id = lease.job_id
        self.on_failure: Change | None = None
        self._jobs = jobs
        self._lease = lease
        self._stop = stop
        self._lost = self._cancelled = self._paused = False
        self._pending: Change | None = None
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
        """Raise if the work must end; called at every step.

        Raises:
            LeaseLost, Cancelled, Stopping, Paused.
        """
        if self._lost:
            raise LeaseLost(self.job_id)
        if self._cancelled:
            raise Cancelled(self.job_id)
        if self._stop.requested:
            raise Stopping(self.job_id)
        if self._paused:
            raise Paused(self.job_id)

    def report(self, change: Change) -> None:
        """Leave a change for the thread to write. A later report or write replaces it."""
        self._pending = change

    def write(self, change: Change) -> JobRecord:
        """Change the record now; while Redis is down, retry until the process is asked to stop.

        Raises:
            LeaseLost, redis.RedisError.
        """
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
            change, self._pending = self._pending, None
            try:
                if time.monotonic() >= renew_at:
                    if not self._lease.renew():
                        raise LeaseLost(self.job_id)
                    renew_at = time.monotonic() + self._lease.ttl_s / 3
                self._cancelled = self._cancelled or self._jobs.cancel_requested(self.job_id)
                self._paused = self._jobs.pause_requested(self.job_id)
                if change:
                    self._jobs.update(self.job_id, change, self._lease)
                log.log_success()
            except OUTAGES as error:
                log.log_failure(error)
                self._pending = self._pending or change
            except LeaseLost:
                logger.warning("job=%s: another process took it, or it ended", self.job_id)
                self._lost = True
                return
            except Exception:  # the work must not continue without a lease
                logger.exception("job=%s: holding it failed", self.job_id)
                self._lost = True
                return
