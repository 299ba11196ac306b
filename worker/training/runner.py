"""A job: prepared pictures → trainer → version. Goes on from its checkpoint, whoever started it."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from model.predictor import Predictor
from model.training.trainer import Trainer
from model.version.tensor_files import CheckpointError
from service.contract.jobs.files import JobFiles
from service.contract.jobs.paces import PaceBook
from service.contract.jobs.store import JobRecord, JobStatus, JobStore
from service.contract.versions.store import VersionStore, new_version_id, write_json
from worker.jobs.held_job import Change, Custody
from worker.jobs.job_taking import Casework
from worker.metrics import TrainingMetrics
from worker.settings import WorkerSettings
from worker.uploads.preparer import config_of

from .evaluation import evaluate_labelled
from .rank_processes import SharedTrainer, rank_order
from .training_input import labelled_pictures, prepared_pictures, training_input
from .training_run import Run

logger = logging.getLogger(__name__)


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
        paces: PaceBook,
    ) -> None:
        self._jobs = jobs
        self._paces = paces
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
        if record.job.status is JobStatus.PAUSED:
            logger.info("job %s: paused before it was taken up", job.id)
            return
        before = self._paces.of(job.settings)
        trainer = self._trainer(record, custody)
        run = Run(trainer, record, custody, self._files.checkpoint(job.id), self._metrics, before)
        run.train()
        if run.pace:
            self._paces.note(job.settings, run.pace)
        with run.set_aside():
            evaluation = self._evaluate(run)
        self._succeed(custody, self._publish(run, custody, evaluation), run.show)

    def _succeed(self, custody: Custody, version: str, show: Change) -> None:
        job = self._jobs.get(custody.job_id)
        if job.activate:
            self._store.activate(job.category, version)

        def succeed(record: JobRecord) -> None:
            show(record)
            record.take_back()  # where it was stopped, or given up for lost, between publishing and here
            record.move(JobStatus.SUCCEEDED)
            record.job.version = version
            record.job.evaluation = self._store.info(job.category, version).get("evaluation")
            record.job.progress.step, record.job.progress.fraction = record.job.progress.total_steps, 1.0

        if self._casework.end(custody, succeed):
            state = "active" if job.activate else "there"
            logger.info("job %s succeeded: version %s of %s is %s", job.id, version, job.category, state)

    def _trainer(self, record: JobRecord, custody: Custody) -> Trainer:
        job, settings = record.job, self._settings
        given, config = training_input(self._files, job.id), config_of(job.settings)
        checkpoint = self._files.checkpoint(job.id)
        make: Callable[..., Trainer] = Trainer
        if settings.training_processes > 1:
            make = partial(
                SharedTrainer,
                processes=settings.training_processes,
                order=rank_order(job.id, config, settings),
                checkpoint=checkpoint,
                check=custody.check,
            )
        trainer = make(
            given.images, config, settings.device, settings.perceptual_weights, clips=given.clips, prior=given.prior
        )
        if job.continued_from:
            trainer.load_weights(self._files.start(job.id))
        try:
            trainer.load_checkpoint(checkpoint)
        except CheckpointError:
            logger.exception("job %s: its checkpoint is of no use, it starts over", job.id)
            shutil.rmtree(checkpoint)
            custody.write(_forget_checkpoint)
            record.trained_s = 0.0
        return trainer

    def _evaluate(self, run: Run) -> dict[str, Any] | None:
        """The trained model on the labelled pictures, where labels came with the job."""
        job_id = run.record.job.id
        labelled = labelled_pictures(self._files, job_id)
        if labelled is None:
            return None
        logger.info("job %s: evaluated on %d labelled pictures", job_id, len(labelled.pictures))
        predictor = Predictor(run.trainer.model, self._settings.device)
        return evaluate_labelled(predictor, prepared_pictures(self._files, job_id), labelled, run.evaluating)

    def _publish(self, run: Run, custody: Custody, evaluation: dict[str, Any] | None) -> str:
        job = run.record.job
        version = new_version_id(job.id)
        with self._store.staging(job.category, version) as folder:
            names = job.continued_from.keypoint_names if job.continued_from else None
            run.trainer.export(folder, tuple(names) if names else None)
            write_json(folder / "version.json", run.facts(version, _checksums(folder), evaluation))
            custody.confirm()
            self._store.publish(folder, job.category, version)
        return version


def _begin(record: JobRecord) -> None:
    if record.pause_if_wanted():
        return
    if record.starts:
        record.log(f"its worker died; training goes on from step {record.checkpointed}")
    if record.begin() and record.job.status is JobStatus.QUEUED:
        record.move(JobStatus.RUNNING)


def _forget_checkpoint(record: JobRecord) -> None:
    record.checkpointed, record.trained_s = 0, 0.0
    record.log("its checkpoint can't be read; training starts over")


def _checksums(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
