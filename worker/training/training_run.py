"""Train one job in this process: report progress, save checkpoints, and set the job aside when it must stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.training.trainer import CHECKPOINT_FILE, StepReport, Trainer
from service.contract.jobs.job import Checkpoint, Progress, select_losses
from service.contract.jobs.progress import Pace
from service.contract.jobs.store import JobRecord, JobStatus, LeaseLost
from worker.jobs.held_job import HeldJob, Stopping
from worker.metrics import TrainingMetrics

from .speed import SpeedMeter, ThreadChoice, find_late_step

logger = logging.getLogger(__name__)

FORMAT = 1  # of a version's folder
_MAX_UNREPORTED = 100  # checkpoints that wait to be written into the record


class TrainingRun:
    """The steps of one job in this process.

    Args:
        checkpoint: folder of the job's checkpoint.
        earlier: the pace of an earlier job of the same settings, if known.
        threads: chooses the number of threads; None if it is fixed.
    """

    def __init__(
        self,
        trainer: Trainer,
        record: JobRecord,
        held: HeldJob,
        checkpoint: Path,
        metrics: TrainingMetrics,
        earlier: Pace | None = None,
        threads: ThreadChoice | None = None,
    ) -> None:
        self.trainer = trainer
        self.record = record
        self._held = held
        self._folder = checkpoint
        self._metrics = metrics
        self._speed = SpeedMeter(find_late_step(trainer.config), earlier)
        self._threads = threads
        self._started = time.monotonic()
        self._evaluating_since: float | None = None
        self._saved_step = trainer.step
        self._trained_before_s = record.trained_s if trainer.step else 0.0
        self._losses = select_losses(record.job.metrics)
        self._progress, self._shown_metrics = record.job.progress, record.job.metrics
        self._set_aside = False
        # checkpoints and the training time at each; replaced as a whole because another thread reads it
        self._unreported: tuple[tuple[Checkpoint, float], ...] = ()
        if trainer.step > record.checkpointed:  # saved by a process that crashed before it reported it
            self._unreported = ((self._describe_checkpoint({}), record.trained_s),)

    @property
    def trained_s(self) -> float:
        """Training time in seconds, including that of earlier processes up to their last checkpoint."""
        return self._trained_before_s + time.monotonic() - self._started

    @property
    def pace(self) -> Pace | None:
        """The measured pace, for later jobs of the same settings."""
        return self._speed.pace

    def train(self) -> None:
        """Take all remaining steps, saving a checkpoint at every interval and at the end.

        Raises:
            What `HeldJob.check` and the trainer raise.
        """
        trainer, total = self.trainer, self.trainer.config.steps
        self._metrics.total_steps.set(total)
        logger.info("job=%s: training from step %d to %d on %s", self._job_id, trainer.step, total, trainer.device)
        # the checkpoint is saved before `reports` is closed
        with closing(trainer.run()) as reports, self.set_aside_if_stopping():
            for report in reports:
                self._report_step(report)
                if self._threads:
                    self._threads.mark(report.step)
                if report.step % trainer.config.checkpoint_every == 0:
                    self._save()
                self._held.check()
        self._save()

    @contextmanager
    def set_aside_if_stopping(self) -> Iterator[None]:
        """If the block raises Stopping, save a checkpoint and requeue or pause the job, then re-raise."""
        try:
            yield
        except Stopping:
            self._save()
            self._set_aside = True

            def requeue(record: JobRecord) -> None:
                self.write_progress(record)
                record.requeue()

            self._held.write(requeue)
            raise

    def report_evaluation(self, done: float) -> None:
        """Report the fraction of the labelled pictures that is evaluated. Raises as `HeldJob.check`."""
        if self._evaluating_since is None:
            self._evaluating_since = time.monotonic()
        spent_s = time.monotonic() - self._evaluating_since
        self._progress.stage, self._progress.eta_s = "evaluating", _round(spent_s / done - spent_s) if done else None
        self._held.report(self._write_if_running)
        self._held.check()

    def version_info(
        self, version: str, checksums: dict[str, str], evaluation: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the content of version.json."""
        job, base = self.record.job, self.record.job.continued_from
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
                **({"threads": self._threads.chosen} if self._threads else {}),
                "losses": self._losses,
                **({"dataset": job.dataset.model_dump()} if job.dataset else {}),
                **({"continued_from": base.model_dump(exclude={"keypoint_names"})} if base else {}),
            },
            **({} if evaluation is None else {"evaluation": evaluation}),
            "files": checksums,
        }

    def write_progress(self, record: JobRecord) -> None:
        """Copy progress, losses and new checkpoints into the record."""
        record.job.progress = self._progress.model_copy()
        record.job.metrics.update(self._shown_metrics)
        for checkpoint, trained_s in self._unreported:
            record.checkpoint(checkpoint, trained_s)

    @property
    def _job_id(self) -> str:
        return self.record.job.id

    def _report_step(self, report: StepReport) -> None:
        step, total = report.step, self.trainer.config.steps
        self._speed.mark(step, time.monotonic())
        speed, eta_s = self._speed.steps_per_s, _round(self._speed.eta_s(total))
        self._losses = report.losses
        self._progress = Progress(step=step, total_steps=total, fraction=step / total, eta_s=eta_s, stage="training")
        self._shown_metrics = {**report.losses, "steps_per_s": _round(speed), "device": str(self.trainer.device)}
        self._held.report(self._write_if_running)
        self._metrics.steps.inc()
        self._metrics.step.set(step)
        self._metrics.steps_per_s.set(speed or 0.0)
        for name, loss in report.losses.items():
            self._metrics.loss.labels(name).set(loss)

    def _write_if_running(self, record: JobRecord) -> None:
        """Write progress; called by the thread of HeldJob with the current record."""
        if record.job.status is JobStatus.PAUSED:  # paused while the lease had run out; check() raises Paused next
            return
        if record.job.status is JobStatus.QUEUED and not self._set_aside:
            record.reclaim()  # it was requeued while the lease had run out
        if record.job.status is not JobStatus.RUNNING:
            raise LeaseLost(record.job.id)
        self.write_progress(record)

    def _save(self) -> None:
        if self._saved_step == self.trainer.step:
            return
        self.trainer.save_checkpoint(self._folder)
        self._saved_step = self.trainer.step
        checkpoint = self._describe_checkpoint(self._losses)
        self._unreported = (*self._unreported[-_MAX_UNREPORTED:], (checkpoint, self.trained_s))
        self._metrics.checkpoints.inc()
        total = self._losses.get("total", float("nan"))
        logger.info("job=%s: checkpoint saved, step=%d loss=%.4g", self._job_id, self.trainer.step, total)

    def _describe_checkpoint(self, losses: dict[str, float]) -> Checkpoint:
        file = (self._folder / CHECKPOINT_FILE).stat()
        saved_at = datetime.fromtimestamp(file.st_mtime, UTC)
        return Checkpoint(step=self.trainer.step, saved_at=saved_at, size_bytes=file.st_size, losses=losses)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
