"""A job: prepared pictures → trainer → version. Goes on from its checkpoint, whoever started it."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint import CheckpointError
from model.trainer import StepReport, Trainer
from service.contract.errors import TrainingFailed
from service.contract.jobs import JobRecord, JobStatus, JobStore, LeaseLost, Progress
from service.contract.store import JobFiles, VersionStore, new_version_id, write_json
from worker.casework import Casework
from worker.custody import Change, Custody, Stopping
from worker.metrics import TrainingMetrics
from worker.pace import Pace
from worker.preparation import config_of
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

FORMAT = 1  # of a version's folder
_NOT_LOSSES = ("images", "skipped", "skipped_files", "steps_per_s", "device")  # among a job's metrics


class TrainingRunner:
    """Trains jobs, one at a time."""

    def __init__(
        self,
        jobs: JobStore,
        files: JobFiles,
        store: VersionStore,
        casework: Casework,
        settings: WorkerSettings,
        metrics: TrainingMetrics,
    ) -> None:
        self._jobs = jobs
        self._files = files
        self._store = store
        self._casework = casework
        self._settings = settings
        self._metrics = metrics
        self.busy = False

    def run(self, job_id: str) -> None:
        """Train a job to its end, if it is there to be trained and nobody else does."""
        self.busy = True
        try:
            self._casework.take(job_id, self.work)
        finally:
            self.busy = False
            self._metrics.idle()

    def work(self, custody: Custody) -> None:
        """What happens between taking the job and its end."""
        job = self._jobs.get(custody.job_id)
        if job.status not in (JobStatus.QUEUED, JobStatus.RUNNING):
            logger.info("job %s is %s: nothing to train", job.id, job.status)
            return
        self._store.sweep_staged(job.category, job.id)
        version = self._store.find_by_job(job.category, job.id)
        if version:
            logger.info("job %s had published %s already", job.id, version)
            self._succeed(custody, version, lambda record: None)
            return
        record = custody.write(_begin)
        if record.job.status.ended:
            self._casework.ended(record)  # as failed: it was begun too often
            return
        run = _Run(self._trainer(record, custody), record, custody, self._files.checkpoint(job.id), self._metrics)
        run.train()
        self._succeed(custody, self._publish(run, custody), run.show)

    def _succeed(self, custody: Custody, version: str, show: Change) -> None:
        job = self._jobs.get(custody.job_id)
        self._store.activate(job.category, version)

        def succeed(record: JobRecord) -> None:
            show(record)
            if record.job.status is JobStatus.QUEUED:  # stopped between publishing and here
                record.move(JobStatus.RUNNING)
            record.move(JobStatus.SUCCEEDED)
            record.job.version = version
            record.job.progress.step, record.job.progress.fraction = record.job.progress.total_steps, 1.0

        if self._casework.end(custody, succeed):
            logger.info("job %s succeeded: version %s of %s is active", job.id, version, job.category)

    def _trainer(self, record: JobRecord, custody: Custody) -> Trainer:
        job = record.job
        try:
            # copy-on-write: torch wants memory that could be written to
            images = np.load(self._files.pictures(job.id), mmap_mode="c", allow_pickle=False)
        except FileNotFoundError as error:
            raise TrainingFailed("its prepared pictures are gone from the server; send the job again") from error
        settings = self._settings
        trainer = Trainer(images, config_of(job.settings), settings.device, settings.perceptual_weights)
        checkpoint = self._files.checkpoint(job.id)
        try:
            trainer.load_checkpoint(checkpoint)
        except CheckpointError:
            logger.exception("job %s: its checkpoint is of no use, it starts over", job.id)
            shutil.rmtree(checkpoint)
            custody.write(_forget_checkpoint)
            record.trained_s = 0.0
        return trainer

    def _publish(self, run: _Run, custody: Custody) -> str:
        job = run.record.job
        version = new_version_id(job.id)
        with self._store.staging(job.category, version) as folder:
            run.trainer.export(folder)
            write_json(folder / "version.json", run.facts(version, _checksums(folder)))
            custody.confirm()
            self._store.publish(folder, job.category, version)
        return version


class _Run:
    """The steps of one job in this process."""

    def __init__(
        self, trainer: Trainer, record: JobRecord, custody: Custody, checkpoint: Path, metrics: TrainingMetrics
    ) -> None:
        self.trainer = trainer
        self.record = record
        self._custody = custody
        self._checkpoint = checkpoint
        self._metrics = metrics
        self._pace = Pace()
        self._started = time.monotonic()
        self._saved = (trainer.step, record.trained_s if trainer.step else 0.0)
        self._trained_before_s = self._saved[1]
        self._losses = {name: value for name, value in record.job.metrics.items() if name not in _NOT_LOSSES}
        self._shown = (record.job.progress, record.job.metrics)

    def train(self) -> None:
        """All remaining steps; a checkpoint every so many, before a stop and at the end."""
        trainer, total = self.trainer, self.trainer.config.steps
        job_id = self.record.job.id
        self._metrics.total_steps.set(total)
        logger.info("job %s: from step %d to %d on %s", job_id, trainer.step, total, trainer.device)
        try:
            for report in trainer.run():
                self._tell(report)
                if report.step % trainer.config.checkpoint_every == 0:
                    self._save()
                self._custody.check()
        except Stopping:
            self._save()
            self._custody.write(self._pause)
            raise
        self._save()

    @property
    def trained_s(self) -> float:
        """Time spent on training, that of processes before included as of their last checkpoint."""
        return self._trained_before_s + time.monotonic() - self._started

    def facts(self, version: str, checksums: dict[str, str]) -> dict[str, Any]:
        """version.json."""
        job = self.record.job
        return {
            "format": FORMAT,
            "category": job.category,
            "version": version,
            "job_id": job.id,
            "created_at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "preset": job.settings.get("preset"),
            "settings": self.trainer.config.to_dict(),
            "training": {
                "images": job.metrics.get("images"),
                "skipped": job.metrics.get("skipped"),
                "steps": self.trainer.step,
                "seconds": round(self.trained_s, 3),
                "device": str(self.trainer.device),
                "losses": self._losses,
            },
            "files": checksums,
        }

    def show(self, record: JobRecord) -> None:
        """Progress and losses, into the record."""
        progress, metrics = self._shown
        record.job.progress = progress.model_copy()
        record.job.metrics.update(metrics)

    def _tell(self, report: StepReport) -> None:
        step, total = report.step, self.trainer.config.steps
        self._pace.mark(step, time.monotonic())
        speed, eta_s = self._pace.steps_per_s, self._pace.eta_s(total)
        self._losses = report.losses
        self._shown = (
            Progress(step=step, total_steps=total, fraction=step / total, eta_s=_rounded(eta_s)),
            {**report.losses, "steps_per_s": _rounded(speed), "device": str(self.trainer.device)},
        )
        self._custody.report(self._progress)
        self._metrics.steps.inc()
        self._metrics.step.set(step)
        self._metrics.steps_per_s.set(speed or 0.0)
        for name, loss in report.losses.items():
            self._metrics.loss.labels(name).set(loss)

    def _progress(self, record: JobRecord) -> None:
        """Called by the custody's thread, with the record as it is by then."""
        if record.job.status is not JobStatus.RUNNING:
            raise LeaseLost(record.job.id)
        self.show(record)
        record.checkpoint(*self._saved)

    def _pause(self, record: JobRecord) -> None:
        self.show(record)
        record.checkpoint(*self._saved)
        record.pause()

    def _save(self) -> None:
        if self._saved[0] == self.trainer.step:
            return
        self.trainer.save_checkpoint(self._checkpoint)
        self._saved = (self.trainer.step, self.trained_s)
        self._metrics.checkpoints.inc()
        total = self._losses.get("total", float("nan"))
        logger.info("job %s: checkpoint at step %d, loss %.4g", self.record.job.id, self.trainer.step, total)


def _begin(record: JobRecord) -> None:
    if record.begin() and record.job.status is JobStatus.QUEUED:
        record.move(JobStatus.RUNNING)


def _forget_checkpoint(record: JobRecord) -> None:
    record.checkpointed, record.trained_s = 0, 0.0


def _checksums(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
