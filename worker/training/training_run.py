"""Train one job in this process: report progress and speed, save checkpoints, and set the job aside to stop."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from model.config import PPLConfig
from model.preview import draw_preview
from model.training.trainer import CHECKPOINT_FILE, StepReport, Trainer
from service.contract.durable_files import atomic_write
from service.contract.jobs.files import PREVIEW
from service.contract.jobs.job import Checkpoint, Progress, select_losses
from service.contract.jobs.progress import Pace
from service.contract.jobs.store import JobRecord, JobStatus, LeaseLost
from worker.jobs import HeldJob, Stopping
from worker.metrics import TrainingMetrics

logger = logging.getLogger(__name__)

FORMAT = 1  # of a version's folder
_MAX_UNREPORTED = 100  # checkpoints that wait to be written into the record
# Cost of a step with occlusion relative to one without: 0.409 s to 0.303 s, `compact` on one core. Used until a run
# of the same settings has measured its own.
_LATE_COST = 1.35
_FIRST_PREVIEWS_S = (0.0, 30.0)  # after the start; then one at each checkpoint
_TRIAL_FROM, _TRIAL_EVERY, _TRIAL_STEPS = 2, 100, 2


def find_late_step(config: PPLConfig) -> int | None:
    """Return the first step that also hides parts of pictures and so costs more; None if no step does."""
    hides = config.method == "ppl" and config.occlusion_weight + config.refinement_weight > 0
    return math.ceil(config.occlusion_start * config.steps) if hides else None


class SpeedMeter:
    """Speed over the last seconds of wall time, including checkpoints.

    The first step is left out, because it also builds caches and threads. Steps are slower from ``late_from`` on;
    ``earlier``, the pace of an earlier run with the same settings, gives by how much.
    """

    def __init__(self, late_from: int | None = None, earlier: Pace | None = None, window_s: float = 30.0) -> None:
        self._late_from = math.inf if late_from is None else late_from
        self._late_cost = earlier.late_cost if earlier and earlier.late_cost else _LATE_COST
        self._window_s = window_s
        self._marks: deque[tuple[float, int]] = deque()  # time and step
        self._early_step_s: float | None = None  # last measured before the slower steps

    def mark(self, step: int, now_s: float) -> None:
        """Record that a step is done. Keeps a few marks per second."""
        if self._marks and self._marks[-1][1] < self._late_from <= step:
            self._early_step_s = self._step_s
            self._marks = deque([self._marks[-1]])  # older marks say nothing about the slower steps
        if len(self._marks) > 1 and now_s - self._marks[-2][0] < self._window_s / 100:
            self._marks.pop()
        self._marks.append((now_s, step))
        while len(self._marks) > 2 and now_s - self._marks[0][0] > self._window_s:
            self._marks.popleft()

    @property
    def steps_per_s(self) -> float | None:
        """Current speed; None before the second step."""
        return 1 / self._step_s if self._step_s else None

    def eta_s(self, total_steps: int) -> float | None:
        """Return the seconds to the last step, slower steps weighted by their cost; None before the second step."""
        if not self._step_s:
            return None
        step = self._marks[-1][1]
        late_cost = self._late_cost if step < self._late_from else 1.0  # the measured steps are late ones then
        late = max(0.0, total_steps - max(step, self._late_from - 1))
        return (total_steps - step + late * (late_cost - 1)) * self._step_s

    @property
    def pace(self) -> Pace | None:
        """The pace for later runs of the same settings; None if not measured."""
        if not self._step_s:
            return None
        if self._marks[-1][1] < self._late_from:
            return Pace(self._step_s, None)
        return Pace(self._early_step_s, self._step_s / self._early_step_s) if self._early_step_s else None

    @property
    def _step_s(self) -> float | None:
        if len(self._marks) < 2:
            return None
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        return (last_s - first_s) / (last - first) if last_s > first_s and last > first else None


class ThreadChoice:
    """A choice of the number of torch threads that trains fastest beside the machine's other load.

    All threads of a step meet after every operation, so on a machine that other programs use, one thread is often
    faster than several. Every ``_TRIAL_EVERY`` steps each candidate takes ``_TRIAL_STEPS`` steps, and the fastest goes
    on. Trials begin at fixed steps, so a run that always chooses alike computes alike.

    ``chosen`` has (step, threads) of every change, from the step that training continues from.
    """

    def __init__(
        self,
        most: int,
        set_threads: Callable[[int], None] = torch.set_num_threads,
        clock: Callable[[], float] = time.monotonic,
        step: int = 0,
    ) -> None:
        set_threads(most)
        self._candidates = sorted({most, math.ceil(most / 2), 1}, reverse=True)
        self._set_threads = set_threads
        self._clock = clock
        self._threads = most
        self._taken: dict[int, float] = {}
        self._left = 0
        self._marked = clock()
        self.chosen: list[tuple[int, int]] = [(step, most)]

    def mark(self, step: int) -> None:
        """Count a finished step, and set the threads of the next one."""
        now = self._clock()
        took, self._marked = now - self._marked, now
        step_here = step - self.chosen[0][0]
        if len(self._candidates) == 1 or step_here < _TRIAL_FROM:
            return
        if self._left:
            self._taken[self._threads] = min(took, self._taken.get(self._threads, math.inf))
            self._left -= 1
        elif (step_here - _TRIAL_FROM) % _TRIAL_EVERY == 0:
            self._taken, self._left = {}, _TRIAL_STEPS * len(self._candidates)
        if self._left:
            self._use(self._candidates[-math.ceil(self._left / _TRIAL_STEPS)])
        elif self._taken:
            best = min(self._taken, key=self._taken.__getitem__)
            self._taken = {}
            self._use(best)
            if best != self.chosen[-1][1]:
                self.chosen.append((step, best))

    def _use(self, threads: int) -> None:
        if threads != self._threads:
            self._threads = threads
            self._set_threads(threads)


class TrainingRun:
    """The steps of one job in this process.

    ``threads`` chooses the number of threads, unless it is fixed. ``publish`` makes a version of the trainer's present
    state and returns its name; ``send`` lets other machines have the checkpoint and the preview.
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
        publish: Callable[[TrainingRun], str] | None = None,
        send: Callable[[], object] = lambda: None,
    ) -> None:
        self.trainer = trainer
        self._publish, self._send = publish, send
        self.record = record
        self._held = held
        self._folder = checkpoint
        self.preview = checkpoint.with_name(PREVIEW)
        self._metrics = metrics
        self.speed = SpeedMeter(find_late_step(trainer.config), earlier)
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
        self._previews_due_s = list(_FIRST_PREVIEWS_S if trainer.holds_weights else _FIRST_PREVIEWS_S[:1])
        self._previewed: int | None = None  # step of a preview whose event is not written yet
        if trainer.step > record.checkpointed:  # saved by a process that crashed before it reported it
            self._unreported = ((self._describe_checkpoint({}), record.trained_s),)

    @property
    def trained_s(self) -> float:
        """Training time in seconds, including that of earlier processes up to their last checkpoint."""
        return self._trained_before_s + time.monotonic() - self._started

    def train(self) -> None:
        """Take all remaining steps, saving a checkpoint at every interval and at the end."""
        trainer, total, job_id = self.trainer, self.trainer.config.steps, self.record.job.id
        self._metrics.total_steps.set(total)
        logger.info("job=%s: training from step %d to %d on %s", job_id, trainer.step, total, trainer.device)
        if trainer.zoomed:
            logger.info("job=%s: pictures are cropped to where the thing was found", job_id)
        # the checkpoint is saved before `reports` is closed
        with closing(trainer.run()) as reports, self.set_aside_if_stopping():
            for report in reports:
                self._report_step(report)
                if self._previews_due_s and time.monotonic() - self._started >= self._previews_due_s[0]:
                    self._previews_due_s.pop(0)
                    self._draw_preview()
                if self._threads:
                    self._threads.mark(report.step)
                if report.step % trainer.config.checkpoint_every == 0:
                    self._save()
                if self._held.publish_requested and report.step < total:
                    self._publish_checkpoint()
                self._held.check()
        self._save()

    def _publish_checkpoint(self) -> None:
        """Make a version of the present state, with a checkpoint of the same step."""
        assert self._publish is not None
        self._save()
        step, version = self.trainer.step, self._publish(self)

        def note(record: JobRecord) -> None:
            self._write_if_running(record)
            record.publish_checkpoint(step, version)

        self._held.write(note)
        self._held.publish_requested = False
        logger.info("job=%s: checkpoint published, step=%d version=%s", self.record.job.id, step, version)

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
        """Report the fraction of the labelled pictures that is evaluated. Raises the errors of `HeldJob.check`."""
        if self._evaluating_since is None:
            self._evaluating_since = time.monotonic()
        spent_s = time.monotonic() - self._evaluating_since
        self._progress.stage, self._progress.eta_s = "evaluating", _round(spent_s / done - spent_s) if done else None
        self._held.report(self._write_if_running)
        self._held.check()

    def describe(self, version: str, checksums: dict[str, str], **facts: dict[str, Any] | None) -> dict[str, Any]:
        """Return the content of version.json; ``facts`` are its further members, left out where they are None."""
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
                **({"zoomed": True} if self.trainer.zoomed else {}),
                **({"located": job.metrics["located"]} if job.metrics.get("located") else {}),
                "steps": self.trainer.step,
                "seconds": round(self.trained_s, 3),
                "device": str(self.trainer.device),
                **({"threads": self._threads.chosen} if self._threads else {}),
                "losses": self._losses,
                **({"dataset": job.dataset.model_dump()} if job.dataset else {}),
                **({"continued_from": base.model_dump(exclude={"keypoint_names"})} if base else {}),
            },
            **{name: fact for name, fact in facts.items() if fact is not None},
            "files": checksums,
        }

    def write_progress(self, record: JobRecord) -> None:
        """Copy progress, losses and new checkpoints into the record."""
        record.job.progress = self._progress.model_copy()
        record.job.metrics.update(self._shown_metrics)
        for checkpoint, trained_s in self._unreported:
            record.checkpoint(checkpoint, trained_s)
        if self._previewed is not None:
            record.preview(self._previewed)

    def _report_step(self, report: StepReport) -> None:
        step, total = report.step, self.trainer.config.steps
        self.speed.mark(step, time.monotonic())
        speed, eta_s = self.speed.steps_per_s, _round(self.speed.eta_s(total))
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
        self._draw_preview()
        self._metrics.checkpoints.inc()
        total = self._losses.get("total", float("nan"))
        logger.info("job=%s: checkpoint saved, step=%d loss=%.4g", self.record.job.id, self.trainer.step, total)

    def _draw_preview(self) -> None:
        trainer = self.trainer
        picture = draw_preview(trainer.model, trainer.batches.images, trainer.batches.clips)
        with atomic_write(self.preview) as file:
            picture.save(file, "PNG")
        self._previewed = trainer.step
        self._send()

    def _describe_checkpoint(self, losses: dict[str, float]) -> Checkpoint:
        file = (self._folder / CHECKPOINT_FILE).stat()
        saved_at = datetime.fromtimestamp(file.st_mtime, UTC)
        return Checkpoint(step=self.trainer.step, saved_at=saved_at, size_bytes=file.st_size, losses=losses)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
