"""A job in this process's hands: its lease kept, its progress told, its owner's wishes watched, by a thread.

The thread does all that needs Redis, so that a slow or absent server never holds up training.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from service.contract.jobs.store import JobRecord, JobStore, Lease, LeaseLost
from worker.redis_retries import OUTAGES, OutageLog, through_outages

logger = logging.getLogger(__name__)

Change = Callable[[JobRecord], Any]

_PERIOD_S = 0.5  # progress is written, and the owner's wishes are read, about twice a second


class Cancelled(Exception):  # noqa: N818 - what happened, as LeaseLost
    """The job's owner wants it stopped."""


class Stopping(Exception):  # noqa: N818
    """This process shall end; the job goes on elsewhere or later."""


class Paused(Stopping):
    """The job's owner wants it paused; this process goes on with others."""


class Stop:
    """Whether the process was asked to end. Set by a signal handler, so it must not take a lock."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Ask for the end."""
        self.requested = True


class Custody:
    """Keeps a leased job until the block ends.

    Args:
        jobs: where the job is.
        lease: held when the block begins; released when it ends.
        stop: of the process.

    Attributes:
        findings: what the record shall show also where the job fails; written together with the failure.
    """

    def __init__(self, jobs: JobStore, lease: Lease, stop: Stop) -> None:
        self.job_id = lease.job_id
        self.findings: Change | None = None
        self._jobs = jobs
        self._lease = lease
        self._stop = stop
        self._lost = False
        self._cancelled = self._paused = False
        self._pending: Change | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"custody-{self.job_id}", daemon=True)

    def __enter__(self) -> Custody:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        try:
            self._lease.release()
        except OUTAGES:
            logger.warning("job %s: the lease is left to expire, Redis is away", self.job_id)

    def check(self) -> None:
        """Called every step: whether to go on.

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
        """Progress to write at the next occasion; a later report replaces it, and an end forgets it."""
        self._pending = change

    def write(self, change: Change) -> JobRecord:
        """Change the record now, waiting for Redis if need be; the waiting ends when the process shall end.

        Raises:
            LeaseLost, redis.RedisError.
        """
        self._pending = None
        return through_outages(
            lambda: self._jobs.update(self.job_id, change, self._lease),
            lambda: self._stop.requested,
            f"job {self.job_id}",
        )

    def confirm(self) -> None:
        """Make sure that the job is still ours, right before doing what can't be undone. Raises as write."""
        if not through_outages(self._lease.renew, lambda: self._stop.requested, f"job {self.job_id}"):
            raise LeaseLost(self.job_id)

    def _run(self) -> None:
        renew_at = 0.0
        log = OutageLog(f"job {self.job_id}")
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
                log.worked()
            except OUTAGES as error:
                log.failed(error)
                self._pending = self._pending or change
            except LeaseLost:
                logger.warning("job %s: another process has it now, or it ended", self.job_id)
                self._lost = True
                return
            except Exception:  # a fault of ours must stop the work, not leave it running without a lease
                logger.exception("job %s: its custody failed", self.job_id)
                self._lost = True
                return
