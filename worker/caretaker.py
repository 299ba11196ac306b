"""The training worker's second thread: prepares uploads, requeues lost jobs and deletes leftover files."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kombu.exceptions import OperationalError

from service.contract.clocks import ClockWatch
from service.contract.errors import UnknownJob, UnreadableJob
from service.contract.jobs.store import JobStatus
from service.contract.routing import RECONCILE_EVERY_S
from service.contract.versions.store import VersionStore
from worker.training.runner import TrainingRunner
from worker.uploads.preparer import Preparer

from .heartbeat import PeriodicThread
from .redis_retries import OUTAGES

logger = logging.getLogger(__name__)

_SWEEP_EVERY_S = 15.0
_MAX_UPLOAD_S = 3600.0
_MAX_PUBLISHING_S = 3600.0


class Caretaker(PeriodicThread):
    """A thread that checks uploads while another job trains; ``send`` puts a job's message into the training queue."""

    def __init__(
        self, preparer: Preparer, store: VersionStore, send: Callable[[str], object], clock: ClockWatch | None = None
    ) -> None:
        super().__init__("caretaker", every_s=0.5)
        self._preparer, self._store, self._send = preparer, store, send
        self._taker = preparer.taker
        self._jobs, self._files, self._stop = self._taker.jobs, self._taker.files, self._taker.stop
        self._reconcile_at = self._sweep_at = 0.0
        self._clock = clock or ClockWatch()

    def run_once(self) -> None:
        """Prepare every waiting upload; now and then requeue lost jobs and sweep files."""
        for record in self._jobs.list_unfinished():
            if record.job.status is JobStatus.VALIDATING and not self._stop.requested:
                self.prepare(record.job.id)
        now = time.monotonic()
        if now >= self._reconcile_at:
            self._reconcile_at = now + RECONCILE_EVERY_S
            if sent := self._jobs.reconcile(self._send, exclusive=True):
                logger.info("jobs requeued: %s", ", ".join(sorted(sent)))
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_EVERY_S
            self.sweep()

    def make_task(self, runner: TrainingRunner) -> Callable[[str], None]:
        """Return the body of the Celery task: train a job, and hand it over if this worker stops."""

        def train(job_id: str) -> None:
            runner.run(job_id)
            if self._stop.requested:
                self.hand_over(job_id)

        return train

    def hand_over(self, job_id: str) -> None:
        """Put a job that this stopping worker set aside at the head of the queue."""
        try:
            with suppress(UnknownJob, UnreadableJob):
                record = self._jobs.record(job_id)
                if record.job.status is JobStatus.QUEUED and record.ahead:
                    self._jobs.send_ahead(job_id, self._send)
        except (*OUTAGES, OperationalError):
            logger.warning("job=%s: Redis is down; the job is requeued once it is back", job_id)

    def prepare(self, job_id: str) -> None:
        """Check and prepare a job's upload, then send its message to the training queue."""
        if self._jobs.is_leased(job_id) or not self._taker.take(job_id, self._preparer.prepare):
            return
        with suppress(UnknownJob):
            if self._jobs.get(job_id).status is JobStatus.QUEUED:
                self._send(job_id)

    def sweep(self) -> None:
        """Delete the files of jobs that ended or have no record, and abandoned drafts of versions."""
        was_set = self._clock.was_set()
        for job_id in self._files.ids():
            try:
                ended = self._jobs.get(job_id).status.ended
            except UnreadableJob:  # a newer release may be able to continue it
                continue
            except UnknownJob:  # its upload may still be running
                ended = not was_set and _seconds_since_write(self._files.folder(job_id)) > _MAX_UPLOAD_S
            if ended and not self._jobs.is_leased(job_id):
                logger.info("job=%s: files deleted", job_id)
                self._files.remove(job_id)
        if was_set:
            return
        drafts = [path for path in self._store.list_staged() if _seconds_since_write(path) > _MAX_PUBLISHING_S]
        unfinished = {job_id[-6:] for job_id in self._jobs.unfinished_ids()} if drafts else set()
        for path in drafts:
            if not any(f"-{job}" in path.name for job in unfinished):
                logger.info("draft of a version deleted: %s", path.name)
                shutil.rmtree(path, ignore_errors=True)


def _seconds_since_write(folder: Path) -> float:
    times = [path.stat().st_mtime for path in (folder, *folder.rglob("*")) if path.exists()]
    return time.time() - max(times, default=time.time())
