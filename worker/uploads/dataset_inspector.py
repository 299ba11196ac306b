"""The training worker's third thread: inspects datasets and resumes inspections interrupted by a crash."""

from __future__ import annotations

import logging
import time

from service.contract.datasets.dataset import DatasetStatus, Findings
from service.contract.datasets.store import DatasetFiles
from service.contract.errors import Abandoned, PPLError, UnknownDataset
from service.contract.jobs.job import MAX_CRASHES_WITHOUT_PROGRESS, JobError
from worker.heartbeat import PeriodicThread
from worker.jobs import Stop, Stopping, explain_failure
from worker.settings import WorkerSettings

from .inspection import Inspection

logger = logging.getLogger(__name__)

_WRITE_EVERY_S = 2.0


class Inspector(PeriodicThread):
    """A thread that inspects datasets while a job trains. Its whole state is on disk."""

    def __init__(self, files: DatasetFiles, settings: WorkerSettings, stop: Stop) -> None:
        super().__init__("inspector", every_s=0.5)
        self._files = files
        self._settings = settings
        self._stop = stop

    def run_once(self) -> None:
        """Inspect every waiting dataset."""
        for dataset_id in self._files.list_waiting():
            if self._is_stopping():
                return
            self.inspect(dataset_id)

    def inspect(self, dataset_id: str) -> None:
        """Inspect a dataset unless another process does."""
        try:
            with self._files.lock_inspection(dataset_id) as mine:
                findings = self._files.findings(dataset_id) if mine else None
                if findings is None or findings.status is not DatasetStatus.INSPECTING:
                    return
                self._inspect(dataset_id, findings)
        except Stopping:
            logger.info("dataset=%s: set aside, it is inspected later", dataset_id)
        except UnknownDataset:
            logger.info("dataset=%s: deleted", dataset_id)

    def _inspect(self, dataset_id: str, findings: Findings) -> None:
        if findings.starts > MAX_CRASHES_WITHOUT_PROGRESS:
            error = Abandoned(
                f"the worker crashed {findings.starts} times while it inspected the dataset; often the memory ran "
                "out, see the worker's log"
            )
            self._fail(dataset_id, findings, error)
            return
        findings.starts += 1
        self._files.write_findings(dataset_id, findings)
        inspection = None
        written_at = time.monotonic()

        def write_progress() -> None:
            nonlocal written_at
            assert inspection is not None
            if time.monotonic() - written_at > _WRITE_EVERY_S:
                findings.found = inspection.findings()
                self._files.write_findings(dataset_id, findings)
                written_at = time.monotonic()

        try:
            inspection = Inspection(self._files, self._files.record(dataset_id), self._settings, self._check)
            findings.found = inspection.run(write_progress)
            inspection.save_sheet(self._files.sheet(dataset_id))
        except Stopping:
            findings.starts = 0  # an orderly stop is not a crash
            self._files.write_findings(dataset_id, findings)
            raise
        except UnknownDataset:
            raise
        except Exception as error:  # the owner must see any failure
            self._files.record(dataset_id)  # raises UnknownDataset if the dataset was deleted meanwhile
            if not isinstance(error, PPLError):
                logger.exception("dataset=%s: inspection failed", dataset_id)
            if inspection is not None:
                findings.found = inspection.findings()
            self._fail(dataset_id, findings, explain_failure(error, "dataset"))
            return
        findings.status = DatasetStatus.READY
        self._files.write_findings(dataset_id, findings)
        pictures, videos, skipped = findings.found.pictures, findings.found.videos, findings.found.skipped
        logger.info("dataset=%s: ready, pictures=%d videos=%d skipped=%d", dataset_id, pictures, videos, skipped)

    def _fail(self, dataset_id: str, findings: Findings, error: PPLError) -> None:
        logger.warning("dataset=%s: failed: %s (%s)", dataset_id, error.detail, error.code)
        findings.status, findings.error = DatasetStatus.FAILED, JobError(**error.to_dict())
        self._files.write_findings(dataset_id, findings)

    def _is_stopping(self) -> bool:
        return self._stop.requested or self._done.is_set()

    def _check(self) -> None:
        if self._is_stopping():
            raise Stopping
