"""The training worker's third thread: looks into datasets, whoever died over them before."""

from __future__ import annotations

import logging
import threading
import time

from service.contract.datasets.dataset import DatasetStatus, Findings
from service.contract.datasets.store import DatasetFiles
from service.contract.errors import Abandoned, DiskFull, PPLError, TrainingFailed, UnknownDataset
from service.contract.jobs.job import MAX_DEATHS, JobError
from worker.jobs.failures import is_disk_full
from worker.jobs.held_job import Stop, Stopping
from worker.settings import WorkerSettings

from .inspection import Inspection

logger = logging.getLogger(__name__)

_PERIOD_S = 0.5
_TELL_EVERY_S = 2.0


class Inspector:
    """Runs beside training, so that datasets are looked into while a job trains. All that it knows is on disk."""

    def __init__(self, files: DatasetFiles, settings: WorkerSettings, stop: Stop) -> None:
        self._files = files
        self._settings = settings
        self._stop = stop
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inspector", daemon=True)

    def start(self) -> None:
        """Work from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the picture in hand and end; the dataset in hand is begun anew later."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def round(self) -> None:
        """Look into every dataset that waits for it."""
        for dataset_id in self._files.waiting():
            if self._stop.requested or self._done.is_set():
                return
            self.inspect(dataset_id)

    def inspect(self, dataset_id: str) -> None:
        """Look into a dataset, unless another process does."""
        try:
            with self._files.inspecting(dataset_id) as mine:
                findings = self._files.findings(dataset_id) if mine else None
                if findings is None or findings.status is not DatasetStatus.INSPECTING:
                    return
                self._work(dataset_id, findings)
        except Stopping:
            logger.info("dataset %s: set aside, it is looked into later", dataset_id)
        except UnknownDataset:
            logger.info("dataset %s was deleted", dataset_id)

    def _work(self, dataset_id: str, findings: Findings) -> None:
        if findings.starts > MAX_DEATHS:
            error = Abandoned(
                f"the worker that looked into it died {findings.starts} times; its log may say why, and lack of memory "
                "is the usual reason"
            )
            self._fail(dataset_id, findings, error)
            return
        findings.starts += 1
        self._files.write_findings(dataset_id, findings)
        inspection = None
        told_at = time.monotonic()

        def tell() -> None:
            nonlocal told_at
            assert inspection is not None
            if time.monotonic() - told_at > _TELL_EVERY_S:
                findings.found = inspection.found()
                self._files.write_findings(dataset_id, findings)
                told_at = time.monotonic()

        try:
            inspection = Inspection(self._files, self._files.record(dataset_id), self._settings, self._check)
            findings.found = inspection.run(tell)
            inspection.save_sheet(self._files.sheet(dataset_id))
        except Stopping:
            findings.starts = 0  # a stop in good order is no death
            self._files.write_findings(dataset_id, findings)
            raise
        except UnknownDataset:
            raise
        except Exception as error:  # a dataset never waits for ever: whatever was raised, its owner is told
            self._files.record(dataset_id)  # raises where it was deleted meanwhile, which explains the error
            if not isinstance(error, PPLError):
                logger.exception("dataset %s can't be looked into", dataset_id)
            if inspection is not None:
                findings.found = inspection.found()
            self._fail(dataset_id, findings, _reason(error))
            return
        findings.status = DatasetStatus.READY
        self._files.write_findings(dataset_id, findings)
        found = findings.found
        logger.info(
            "dataset %s: %d pictures and %d videos, %d files skipped",
            dataset_id,
            found.pictures,
            found.videos,
            found.skipped,
        )

    def _fail(self, dataset_id: str, findings: Findings, error: PPLError) -> None:
        logger.warning("dataset %s failed: %s (%s)", dataset_id, error.detail, error.code)
        findings.status, findings.error = DatasetStatus.FAILED, JobError(**error.to_dict())
        self._files.write_findings(dataset_id, findings)

    def _check(self) -> None:
        if self._stop.requested or self._done.is_set():
            raise Stopping

    def _run(self) -> None:
        while not self._done.wait(_PERIOD_S):
            try:
                self.round()
            except Exception:  # this thread must outlive whatever one round meets
                logger.exception("a round failed")


def _reason(error: Exception) -> PPLError:
    """What the owner is told; the log has the error itself."""
    if isinstance(error, PPLError):
        return error
    if is_disk_full(error):
        return DiskFull("the server's disk is full; send the dataset again once there is room")
    return TrainingFailed("an internal error; the worker's log has its trace under the dataset's id")
