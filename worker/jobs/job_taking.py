"""One job worked on from taking its lease to its end: whatever happens, the job's record tells it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from service.contract.errors import JobNotActive, PPLError, UnknownJob, UnreadableJob
from service.contract.jobs.files import JobFiles
from service.contract.jobs.store import JobRecord, JobStatus, JobStore, LeaseLost
from worker.metrics import TrainingMetrics
from worker.redis_retries import OUTAGES
from worker.training.rank_processes import RankDied

from .failures import failure_of
from .held_job import Cancelled, Change, Custody, Paused, Stop, Stopping

logger = logging.getLogger(__name__)


class Casework:
    """Takes jobs, one at a time for each caller, and ends them in good order.

    Args:
        holder: names this process in leases.
        stop: of the process.
    """

    def __init__(self, jobs: JobStore, files: JobFiles, metrics: TrainingMetrics, holder: str, stop: Stop) -> None:
        self._jobs = jobs
        self._files = files
        self._metrics = metrics
        self._holder = holder
        self._stop = stop

    def take(self, job_id: str, work: Callable[[Custody], None]) -> bool:
        """Work on a job if nobody else does.

        Args:
            work: does it, calling ``custody.check()`` often. What it raises decides how the job
                goes on: Cancelled ends it, Stopping leaves it to be taken up again (Paused, once its
                owner wants it), LeaseLost leaves it to another process, anything else fails it.

        Returns:
            Whether it was free.
        """
        lease = self._jobs.acquire(job_id, self._holder)
        if lease is None:
            logger.info("job %s: another process has it", job_id)
            return False
        with Custody(self._jobs, lease, self._stop) as custody:
            try:
                if self._jobs.cancel_requested(job_id):
                    raise Cancelled(job_id)
                work(custody)
            except (LeaseLost, JobNotActive):
                logger.warning("job %s: stopped, it is another's or has ended", job_id)
            except UnknownJob:
                logger.info("job %s: its record is gone", job_id)
            except UnreadableJob as error:
                logger.error("left as it is: %s", error.detail)
            except Paused:
                logger.info("job %s: paused", job_id)
            except Stopping:
                logger.info("job %s: set aside, it goes on later", job_id)
            except RankDied as error:
                logger.error("job %s: set aside, %s; it goes on from its checkpoint", job_id, error)
            except Cancelled:
                logger.info("job %s: cancelled", job_id)
                self.end(custody, lambda record: record.move(JobStatus.CANCELLED))
            except PPLError as error:
                self._fail(custody, error)
            except OUTAGES:
                logger.exception("job %s: set aside, Redis is away; it goes on later", job_id)
            except Exception as error:  # a job is never lost: whatever was raised, its owner is told
                logger.exception("job %s failed", job_id)
                self._fail(custody, failure_of(error))
        return True

    def end(self, custody: Custody, change: Change) -> JobRecord | None:
        """Write a change that ends the job, count it and remove the job's files; None where the job is not ours."""
        try:
            record = custody.write(change)
        except (LeaseLost, UnknownJob, JobNotActive):
            logger.warning("job %s: its end was not written, it is another's or has ended", custody.job_id)
            return None
        except OUTAGES:
            logger.exception("job %s: its end was not written, Redis is away; it goes on later", custody.job_id)
            return None
        self.ended(record)
        return record

    def ended(self, record: JobRecord) -> None:
        """What remains to be done for a job whose end is written."""
        self._metrics.jobs.labels(str(record.job.status)).inc()
        try:
            self._files.remove(record.job.id)
        except OSError:
            logger.exception("job %s: its files are left for the next sweep", record.job.id)

    def _fail(self, custody: Custody, error: PPLError) -> None:
        logger.warning("job %s failed: %s (%s)", custody.job_id, error.detail, error.code)

        def fail(record: JobRecord) -> None:
            if custody.findings:
                custody.findings(record)
            record.fail(error)

        self.end(custody, fail)
