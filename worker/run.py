"""The steps of one job in this process: trained, told, saved, and paused where the process shall end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.trainer import StepReport, Trainer
from service.contract.jobs import JobRecord, JobStatus, LeaseLost, Progress
from worker.custody import Custody, Stopping
from worker.metrics import TrainingMetrics
from worker.pace import Pace

logger = logging.getLogger(__name__)

FORMAT = 1  # of a version's folder
# among a job's metrics
_NOT_LOSSES = ("images", "skipped", "skipped_files", "held_out", "mode", "clips", "steps_per_s", "device")


class Run:
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
        """All remaining steps; a checkpoint every so many and at the end."""
        trainer, total = self.trainer, self.trainer.config.steps
        job_id = self.record.job.id
        self._metrics.total_steps.set(total)
        logger.info("job %s: from step %d to %d on %s", job_id, trainer.step, total, trainer.device)
        with closing(trainer.run()) as reports, self.pausing():  # paused before it is closed
            for report in reports:
                self._tell(report)
                if report.step % trainer.config.checkpoint_every == 0:
                    self._save()
                self._custody.check()
        self._save()

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Where the process shall end in the block, the job goes on later from where it is."""
        try:
            yield
        except Stopping:
            self._save()
            self._custody.write(self._pause)
            raise

    def evaluating(self, done: float) -> None:
        """All steps are done, and a part of the labelled pictures; raises as ``custody.check``."""
        self._shown[0].stage, self._shown[0].eta_s = "evaluating", None
        self._custody.report(self._progress)
        self._custody.check()
        logger.debug("job %s: %.0f %% evaluated", self.record.job.id, 100 * done)

    @property
    def trained_s(self) -> float:
        """Time spent on training, that of processes before included as of their last checkpoint."""
        return self._trained_before_s + time.monotonic() - self._started

    def facts(
        self, version: str, checksums: dict[str, str], evaluation: dict[str, Any] | None = None
    ) -> dict[str, Any]:
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
                "images": len(self.trainer.batches.images),
                "skipped": job.metrics.get("skipped"),
                "mode": self.trainer.mode,
                "steps": self.trainer.step,
                "seconds": round(self.trained_s, 3),
                "device": str(self.trainer.device),
                "losses": self._losses,
                **({"dataset": job.dataset.model_dump()} if job.dataset else {}),
            },
            **({} if evaluation is None else {"evaluation": evaluation}),
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
            Progress(step=step, total_steps=total, fraction=step / total, eta_s=_rounded(eta_s), stage="training"),
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


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
