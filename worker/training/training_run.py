"""The steps of one job in this process: trained, told, saved, and set aside where it shall stop for now."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.training.trainer import CHECKPOINT_FILE, StepReport, Trainer
from service.contract.jobs.job import Checkpoint, losses_of
from service.contract.jobs.paces import Pace
from service.contract.jobs.store import JobRecord, JobStatus, LeaseLost, Progress
from worker.jobs.held_job import Custody, Stopping
from worker.metrics import TrainingMetrics

from .speed import PaceKeeper, late_step

logger = logging.getLogger(__name__)

FORMAT = 1  # of a version's folder
_SAVES_TOLD = 100  # checkpoints that may wait to be told


class Run:
    """The steps of one job in this process.

    Args:
        before: how fast an earlier job of the same settings went, if that is known.
    """

    def __init__(
        self,
        trainer: Trainer,
        record: JobRecord,
        custody: Custody,
        checkpoint: Path,
        metrics: TrainingMetrics,
        before: Pace | None = None,
    ) -> None:
        self.trainer = trainer
        self.record = record
        self._custody = custody
        self._checkpoint = checkpoint
        self._metrics = metrics
        self._pace = PaceKeeper(late_step(trainer.config), before)
        self._started = time.monotonic()
        self._evaluating_since: float | None = None
        self._saved = trainer.step
        self._trained_before_s = record.trained_s if trainer.step else 0.0
        self._losses = losses_of(record.job.metrics)
        self._saves: tuple[tuple[Checkpoint, float], ...] = ()  # replaced as a whole: another thread reads it
        if trainer.step > record.checkpointed:  # of a process that was killed before it could tell
            self._saves = ((self._made({}), record.trained_s),)
        self._aside = False
        self._shown = (record.job.progress, record.job.metrics)

    def train(self) -> None:
        """All remaining steps; a checkpoint every so many and at the end."""
        trainer, total = self.trainer, self.trainer.config.steps
        job_id = self.record.job.id
        self._metrics.total_steps.set(total)
        logger.info("job %s: from step %d to %d on %s", job_id, trainer.step, total, trainer.device)
        with closing(trainer.run()) as reports, self.set_aside():  # before it is closed
            for report in reports:
                self._tell(report)
                if report.step % trainer.config.checkpoint_every == 0:
                    self._save()
                self._custody.check()
        self._save()

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Where the process or the job shall stop in the block, the job goes on later from where it is."""
        try:
            yield
        except Stopping:
            self._save()
            self._aside = True
            self._custody.write(self._set_aside)
            raise

    def evaluating(self, done: float) -> None:
        """All steps are done, and a part of the labelled pictures; raises as ``custody.check``."""
        if self._evaluating_since is None:
            self._evaluating_since = time.monotonic()
        spent_s = time.monotonic() - self._evaluating_since
        self._shown[0].stage, self._shown[0].eta_s = "evaluating", _rounded(spent_s / done - spent_s) if done else None
        self._custody.report(self._progress)
        self._custody.check()
        logger.debug("job %s: %.0f %% evaluated", self.record.job.id, 100 * done)

    @property
    def trained_s(self) -> float:
        """Time spent on training, that of processes before included as of their last checkpoint."""
        return self._trained_before_s + time.monotonic() - self._started

    @property
    def pace(self) -> Pace | None:
        """How fast it went, for later jobs of the same settings."""
        return self._pace.pace

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
                **self._continued(),
            },
            **({} if evaluation is None else {"evaluation": evaluation}),
            "files": checksums,
        }

    def _continued(self) -> dict[str, Any]:
        before = self.record.job.continued_from
        return {"continued_from": before.model_dump(exclude={"keypoint_names"})} if before else {}

    def show(self, record: JobRecord) -> None:
        """Progress and losses, into the record."""
        progress, metrics = self._shown
        record.job.progress = progress.model_copy()
        record.job.metrics.update(metrics)
        for made, trained_s in self._saves:
            record.checkpoint(made, trained_s)

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
        if record.job.status is JobStatus.PAUSED:  # in our absence; the custody tells so, and then it is set aside
            return
        if record.job.status is JobStatus.QUEUED and not self._aside:
            record.take_back()  # the lease ran out for a while
        if record.job.status is not JobStatus.RUNNING:
            raise LeaseLost(record.job.id)
        self.show(record)

    def _set_aside(self, record: JobRecord) -> None:
        self.show(record)
        record.set_aside()

    def _save(self) -> None:
        if self._saved == self.trainer.step:
            return
        self.trainer.save_checkpoint(self._checkpoint)
        self._saved = self.trainer.step
        self._saves = (*self._saves[-_SAVES_TOLD:], (self._made(self._losses), self.trained_s))
        self._metrics.checkpoints.inc()
        total = self._losses.get("total", float("nan"))
        logger.info("job %s: checkpoint at step %d, loss %.4g", self.record.job.id, self.trainer.step, total)

    def _made(self, losses: dict[str, float]) -> Checkpoint:
        """The checkpoint on disk, as the job's owner is told of it."""
        file = (self._checkpoint / CHECKPOINT_FILE).stat()
        saved_at = datetime.fromtimestamp(file.st_mtime, UTC)
        return Checkpoint(step=self.trainer.step, saved_at=saved_at, size_bytes=file.st_size, losses=losses)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
