"""The training worker's second thread: prepares uploads, revives lost jobs, sweeps up files."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kombu.exceptions import OperationalError

from service.contract.errors import UnknownJob, UnreadableJob
from service.contract.jobs.files import JobFiles
from service.contract.jobs.store import JobStatus, JobStore
from service.contract.routing import RECONCILE_EVERY_S
from service.contract.versions.store import VersionStore
from worker.jobs.held_job import Stop
from worker.jobs.job_taking import Casework
from worker.uploads.preparer import Preparer

from .redis_retries import OUTAGES, OutageLog

logger = logging.getLogger(__name__)

_PERIOD_S = 0.5
_SWEEP_EVERY_S = 15.0
_UPLOAD_MAY_TAKE_S = 3600.0
_PUBLISHING_MAY_TAKE_S = 3600.0


class Caretaker:
    """Runs beside training, so that uploads are checked while another job trains.

    Args:
        send: puts a job's message into the training queue.
    """

    def __init__(
        self,
        jobs: JobStore,
        files: JobFiles,
        casework: Casework,
        preparer: Preparer,
        send: Callable[[str], object],
        stop: Stop,
        store: VersionStore,
    ) -> None:
        self._jobs = jobs
        self._files = files
        self._store = store
        self._casework = casework
        self._preparer = preparer
        self._send = send
        self._stop = stop
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caretaker", daemon=True)
        self._reconcile_at = self._sweep_at = 0.0

    def start(self) -> None:
        """Work from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the picture in hand and end."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def round(self) -> None:
        """All there is to do just now."""
        for record in self._jobs.unfinished():
            if record.job.status is JobStatus.VALIDATING and not self._stop.requested:
                self.prepare(record.job.id)
        now = time.monotonic()
        if now >= self._reconcile_at:
            self._reconcile_at = now + RECONCILE_EVERY_S
            sent = self._jobs.reconcile(self._send, exclusive=True)
            if sent:
                logger.info("sent again: %s", ", ".join(sorted(sent)))
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_EVERY_S
            self.sweep()

    def hand_on(self, job_id: str) -> None:
        """Of a process that stops: the job that it set aside is taken up next, by whichever worker comes first."""
        try:
            record = self._jobs.record(job_id)
            if record.job.status is JobStatus.QUEUED and record.ahead:
                self._jobs.send_ahead(job_id, self._send)
        except (UnknownJob, UnreadableJob):
            pass
        except (*OUTAGES, OperationalError):
            logger.warning("job %s: Redis is away; its message is sent again once it is back", job_id)

    def prepare(self, job_id: str) -> None:
        """Check and prepare a job's upload, and wake a worker to train it."""
        if self._jobs.leased(job_id):
            return
        if self._casework.take(job_id, self._preparer.work) and self._queued(job_id):
            self._send(job_id)

    def sweep(self) -> None:
        """Remove the files of jobs that have ended, or whose record never came or was removed."""
        for job_id in self._files.ids():
            try:
                ended = self._jobs.get(job_id).status.ended
            except UnreadableJob:  # it may go on
                continue
            except UnknownJob:
                ended = self._age_s(job_id) > _UPLOAD_MAY_TAKE_S  # else its upload may still be under way
            if ended and not self._jobs.leased(job_id):
                logger.info("job %s: its files are swept up", job_id)
                self._files.remove(job_id)
        self._sweep_staged()

    def _sweep_staged(self) -> None:
        """Publications that were cut off, of jobs that nobody will take up again."""
        folders = [path for path in self._store.staged() if _age_s(path) > _PUBLISHING_MAY_TAKE_S]
        unfinished = {job_id[-6:] for job_id in self._jobs.unfinished_ids()} if folders else set()
        for path in folders:
            if path.name[-6:] not in unfinished:
                logger.info("%s is swept up", path.name)
                shutil.rmtree(path, ignore_errors=True)

    def _queued(self, job_id: str) -> bool:
        try:
            return self._jobs.get(job_id).status is JobStatus.QUEUED
        except UnknownJob:
            return False

    def _age_s(self, job_id: str) -> float:
        """Time since anything in the job's folder was last written to."""
        return _age_s(self._files.folder(job_id))

    def _run(self) -> None:
        log = OutageLog("caretaker")
        while not self._done.wait(_PERIOD_S):
            try:
                self.round()
                log.worked()
            except OUTAGES as error:
                log.failed(error)
            except Exception:  # this thread must outlive whatever one round meets
                logger.exception("a round failed")


def _age_s(folder: Path) -> float:
    times = [path.stat().st_mtime for path in (folder, *folder.rglob("*")) if path.exists()]
    return time.time() - max(times, default=time.time())
