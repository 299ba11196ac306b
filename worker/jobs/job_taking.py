"""Work on one job from taking its lease to its end."""

from __future__ import annotations

import logging
from collections.abc import Callable

from service.contract.errors import JobNotActive, PPLError, UnknownJob, UnreadableJob
from service.contract.jobs.files import JobFiles
from service.contract.jobs.store import JobRecord, JobStatus, JobStore, LeaseLost
from worker.metrics import TrainingMetrics
from worker.redis_retries import OUTAGES

from .failures import explain_failure
from .held_job import Cancelled, Change, HeldJob, Paused, RankCrashed, Stop, Stopping

logger = logging.getLogger(__name__)


class JobTaker:
    """A taker of jobs under a lease, which writes how they ended.

    Args:
        holder: name of this process in leases.
        stop: of the process.
    """

    def __init__(self, jobs: JobStore, files: JobFiles, metrics: TrainingMetrics, holder: str, stop: Stop) -> None:
        self._jobs = jobs
        self._files = files
        self._metrics = metrics
        self._holder = holder
        self._stop = stop

    def take(self, job_id: str, work: Callable[[HeldJob], None]) -> bool:
        """Work on a job if no other process does.

        Args:
            work: does it and calls `HeldJob.check` often. Its exception decides what becomes of the job: Cancelled
                ends it, Stopping and RankCrashed leave it for later, Paused until its owner resumes it, LeaseLost
                leaves it to another process, and any other error fails it.

        Returns:
            Whether the job was free.
        """
        lease = self._jobs.acquire(job_id, self._holder)
        if lease is None:
            logger.info("job=%s: another process works on it", job_id)
            return False
        with HeldJob(self._jobs, lease, self._stop) as held:
            try:
                if self._jobs.cancel_requested(job_id):
                    raise Cancelled(job_id)
                work(held)
            except (LeaseLost, JobNotActive):
                logger.warning("job=%s: stopped, another process took it or it ended", job_id)
            except UnknownJob:
                logger.info("job=%s: its record was deleted", job_id)
            except UnreadableJob as error:
                logger.error("job=%s: left unchanged: %s", job_id, error.detail)
            except Paused:
                logger.info("job=%s: paused", job_id)
            except Stopping:
                logger.info("job=%s: set aside, it resumes later", job_id)
            except RankCrashed as error:
                logger.error("job=%s: set aside, %s; it resumes from its checkpoint", job_id, error)
            except Cancelled:
                logger.info("job=%s: cancelled", job_id)
                self.end(held, lambda record: record.move(JobStatus.CANCELLED))
            except PPLError as error:
                self._fail(held, error)
            except OUTAGES:
                logger.exception("job=%s: set aside, Redis is down; it resumes later", job_id)
            except Exception as error:  # the owner must see any failure
                logger.exception("job=%s: failed", job_id)
                self._fail(held, explain_failure(error))
        return True

    def end(self, held: HeldJob, change: Change) -> JobRecord | None:
        """Write a change that ends the job, count it and delete its files; return None if it can't be written."""
        try:
            record = held.write(change)
        except (LeaseLost, UnknownJob, JobNotActive):
            logger.warning("job=%s: end not written, another process took it or it ended", held.job_id)
            return None
        except OUTAGES:
            logger.exception("job=%s: end not written, Redis is down; it resumes later", held.job_id)
            return None
        self.clean_up(record)
        return record

    def clean_up(self, record: JobRecord) -> None:
        """Count a job whose end is written, and delete its files."""
        self._metrics.jobs.labels(str(record.job.status)).inc()
        try:
            self._files.remove(record.job.id)
        except OSError:
            logger.exception("job=%s: files not deleted; the next sweep retries", record.job.id)

    def _fail(self, held: HeldJob, error: PPLError) -> None:
        logger.warning("job=%s: failed: %s (%s)", held.job_id, error.detail, error.code)

        def fail(record: JobRecord) -> None:
            if held.on_failure:
                held.on_failure(record)
            record.fail(error)

        self.end(held, fail)
