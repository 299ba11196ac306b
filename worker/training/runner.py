"""Run a job: prepared pictures → trainer → version, scored by the job's labels. It resumes in any worker."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.data import Images
from model.predictor import PRESENCE_FILE, Predictor
from model.presence import calibrate_presence
from model.quality import measure_quality
from model.scoring.label_matching import training_rows
from model.scoring.protocols import evaluate, sides
from model.training.trainer import Trainer
from model.version.prior import PosePrior
from model.version.tensor_files import CheckpointError
from service.contract.durable_files import sha256_of, write_json
from service.contract.errors import StoreUnavailable, TrainingFailed
from service.contract.jobs.files import BOXES, PREVIEW, JobFiles
from service.contract.jobs.progress import PaceBook
from service.contract.jobs.store import JobRecord, JobStatus
from service.contract.memory import release_memory
from service.contract.versions.quality import Quality
from service.contract.versions.store import VersionStore, new_version_id
from worker.jobs import Change, HeldJob, JobTaker
from worker.metrics import NOT_MEASURED
from worker.settings import WorkerSettings
from worker.uploads.media_reader import copy_rows
from worker.uploads.preparer import load_clips, match_job_labels, prepared_config

from .rank_processes import MultiprocessTrainer, rank_instructions
from .training_run import ThreadChoice, TrainingRun

logger = logging.getLogger(__name__)

_BATCH_SIZE = 32
_PUBLISH_AGAIN_S = 2.0


@dataclass
class TrainingRunner:
    """A runner of training jobs, one at a time."""

    taker: JobTaker
    store: VersionStore
    settings: WorkerSettings
    paces: PaceBook
    is_busy: bool = False

    def run(self, job_id: str) -> None:
        """Train a job to its end if it is queued or running and no other process works on it."""
        self.is_busy = True
        try:
            self.taker.take(job_id, self._work)
        finally:
            self.is_busy = False
            self.taker.metrics.reset_job_gauges()
            release_memory()  # a third of this worker's, which the next job may need elsewhere

    def _work(self, held: HeldJob) -> None:
        job = self.taker.jobs.get(held.job_id)
        if job.status not in (JobStatus.QUEUED, JobStatus.RUNNING):
            logger.info("job=%s: nothing to train, it is %s", job.id, job.status)
            return
        self.store.sweep_staged(job.category, job.id)
        version = self.store.find_by_job(job.category, job.id)
        if version:
            logger.info("job=%s: already published as version=%s", job.id, version)
            self._succeed(held, version, lambda record: None)
            return
        record = held.write(_begin)
        if record.job.status.ended:
            self.taker.clean_up(record)  # it failed because it was started too often
        if record.job.status is not JobStatus.RUNNING:
            return
        pace = self.paces.of(job.settings)
        trainer = self._make_trainer(record, held)
        checkpoint, threads = self.taker.files.checkpoint(job.id), self._choose_threads(trainer)

        def publish_checkpoint(run: TrainingRun) -> str:
            version = new_version_id(job.id, step=trainer.step)
            return self._publish(run, held, version, None, measure_quality(trainer.model, trainer.batches.images))

        run = TrainingRun(
            trainer,
            record,
            held,
            checkpoint,
            self.taker.metrics,
            pace,
            threads,
            publish_checkpoint,
            partial(self._send_files, job.id),
        )
        run.train()
        if run.speed.pace:
            self.paces.note(job.settings, run.speed.pace)
        with run.set_aside_if_stopping():
            evaluation = self._evaluate(run)
            quality = measure_quality(trainer.model, trainer.batches.images)
        version = self._publish(run, held, new_version_id(job.id), evaluation, quality)
        self._succeed(held, version, run.write_progress)

    def _send_files(self, job_id: str) -> None:
        try:
            self.taker.files.send(job_id)
        except StoreUnavailable:  # other machines keep the previous checkpoint
            logger.warning("checkpoint not sent, object store unavailable: job=%s", job_id)

    def _succeed(self, held: HeldJob, version: str, write_progress: Change) -> None:
        job = self.taker.jobs.get(held.job_id)
        info = self.store.info(job.category, version)
        quality = Quality.model_validate(info["quality"]) if "quality" in info else None
        has_failed = quality is not None and quality.verdict == "failed"
        active = job.activate == "always" or (job.activate and not has_failed)
        if active:
            self.store.activate(job.category, version)

        def succeed(record: JobRecord) -> None:
            write_progress(record)
            record.reclaim()  # if it was stopped or requeued between publishing and here
            record.move(JobStatus.SUCCEEDED)
            record.job.version = version
            record.job.evaluation, record.job.quality = info.get("evaluation"), quality
            if job.activate and not active and quality is not None:
                record.log(f"the version does not become active, its quality is failed: {quality.advice}")
            record.job.progress.step, record.job.progress.fraction = record.job.progress.total_steps, 1.0

        self.taker.end(held, succeed)
        verdict = quality.verdict if quality else NOT_MEASURED
        self.taker.metrics.versions.labels(verdict).inc()
        for name in ("score", "consistency", "movement_percent", "explained", "mean_score") if quality else ():
            self.taker.metrics.quality.labels(name).set(getattr(quality, name))
        logger.info("job=%s: succeeded, version=%s active=%s quality=%s", job.id, version, active, verdict)

    def _choose_threads(self, trainer: Trainer) -> ThreadChoice | None:
        """Return the choice of threads; None if the settings fix their number, or if it does not matter."""
        settings = self.settings
        if "training_threads" in settings.model_fields_set or settings.training_processes > 1:
            return None
        return ThreadChoice(settings.training_threads, step=trainer.step) if trainer.device.type == "cpu" else None

    def _make_trainer(self, record: JobRecord, held: HeldJob) -> Trainer:
        job, settings = record.job, self.settings
        data, config = load_training_input(self.taker.files, job.id), prepared_config(self.taker.files, job)
        checkpoint, cropped = self.taker.files.checkpoint(job.id), bool(job.metrics.get("located"))
        given = (data.images, config, settings.device, settings.perceptual_weights)
        if settings.training_processes > 1:
            instructions = rank_instructions(job.id, config, settings, cropped=cropped)
            ranks = (instructions, checkpoint, held.check)
            trainer: Trainer = MultiprocessTrainer(*ranks, *given, clips=data.clips, prior=data.prior, cropped=cropped)
        else:
            trainer = Trainer(*given, clips=data.clips, prior=data.prior, cropped=cropped)
        if job.continued_from:
            trainer.load_weights(self.taker.files.start(job.id))
        try:
            trainer.load_checkpoint(checkpoint)
        except CheckpointError:
            logger.exception("job=%s: checkpoint can't be read, training starts over", job.id)
            shutil.rmtree(checkpoint)
            held.write(_forget_checkpoint)
            record.trained_s = 0.0
        return trainer

    def _evaluate(self, run: TrainingRun) -> dict[str, Any] | None:
        """Return the errors on the job's labelled pictures, without refinement; None if it has no labels.

        Returns:
            The result of `model.scoring.protocols.evaluate`, or only its "reason" if the labels can't be scored, with
            "keypoint_names", "labels_without_picture" and "split_from": "labels", or "names" if the labels have no
            split and a fifth of the pictures was held out by a hash of their names.
        """
        job_id = run.record.job.id
        labelled = match_job_labels(self.taker.files, job_id)
        if labelled is None:
            return None
        count = len(labelled.pictures)
        logger.info("job=%s: evaluating on %d labelled pictures", job_id, count)
        predictor, images = Predictor(run.trainer.model, self.settings.device), load_pictures(self.taker.files, job_id)
        poses = []
        for first in range(0, count, _BATCH_SIZE):
            run.report_evaluation(first / count)
            batch = np.ascontiguousarray(images[labelled.pictures[first : first + _BATCH_SIZE]])
            poses.append(predictor.predict(batch).keypoints)
        keypoints = (np.concatenate(poses).astype(np.float64) + 1) / 2
        train, heldout = (
            (keypoints[rows], labelled.keypoints[rows], labelled.visibility[rows])
            for rows in (~labelled.heldout, labelled.heldout)
        )
        facts = {
            "keypoint_names": list(labelled.keypoint_names),
            "split_from": labelled.split_from,
            "labels_without_picture": labelled.without_picture,
        }
        try:
            return evaluate(train, heldout, sides(labelled.keypoint_names)) | facts
        except ValueError as error:  # e.g. no keypoint is visible in both splits; the version is valid all the same
            return {"reason": str(error)} | facts

    def _publish(
        self,
        run: TrainingRun,
        held: HeldJob,
        version: str,
        evaluation: dict[str, Any] | None,
        quality: dict[str, Any],
    ) -> str:
        job = run.record.job
        with self.store.staging(job.category, version) as folder:
            names = job.continued_from.keypoint_names if job.continued_from else None
            run.trainer.export(folder, tuple(names) if names else None)
            presence = calibrate_presence(run.trainer.model, run.trainer.batches.images)
            if presence is not None:
                write_json(folder / PRESENCE_FILE, presence.to_json())
            checksums = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
            facts = run.describe(version, checksums, evaluation=evaluation, quality=quality)
            write_json(folder / "version.json", facts)
            shutil.copyfile(run.preview, folder / PREVIEW)
            if (boxes := self.taker.files.found_boxes(job.id)).exists():
                shutil.copyfile(boxes, folder / BOXES)
            while True:
                held.confirm_lease()
                try:
                    self.store.publish(folder, job.category, version)
                    return version
                except StoreUnavailable:
                    logger.warning("version not published, retrying: job=%s", job.id)
                    time.sleep(_PUBLISH_AGAIN_S)
                    held.check()


def _begin(record: JobRecord) -> None:
    if record.pause_if_requested():
        return
    if record.starts:
        record.log(f"its worker crashed; training resumes from step {record.checkpointed}")
    if record.count_start() and record.job.status is JobStatus.QUEUED:
        record.move(JobStatus.RUNNING)


def _forget_checkpoint(record: JobRecord) -> None:
    record.checkpointed, record.trained_s = 0, 0.0
    record.log("its checkpoint can't be read; training starts over")


class TrainingInput(NamedTuple):
    """The pictures (n, S, S, 3) that a job trains on, a memory map; their clips (n,), and a prior to start from."""

    images: Images
    clips: NDArray[np.int64] | None
    prior: PosePrior | None


def load_pictures(files: JobFiles, job_id: str) -> Images:
    """Return all prepared pictures of a job, uint8 (N, S, S, 3), memory-mapped. Raises TrainingFailed if missing."""
    try:
        return _map(files.pictures(job_id))
    except FileNotFoundError as error:
        raise TrainingFailed("the job's prepared pictures were deleted from the server; send the job again") from error


def load_training_input(files: JobFiles, job_id: str) -> TrainingInput:
    """Return what a job trains on, without the held-out pictures. Raises TrainingFailed if files are missing."""
    images = load_pictures(files, job_id)
    clips, prior = load_clips(files, job_id), None
    if files.prior(job_id).exists():
        prior = PosePrior.from_json(json.loads(files.prior(job_id).read_text(encoding="utf-8")))
    rows = training_rows(len(images), match_job_labels(files, job_id), clips)
    if not rows.all():
        chosen = files.training_pictures(job_id)
        if not chosen.exists():
            copy_rows(images, np.flatnonzero(rows), chosen)
        images, clips = _map(chosen), None if clips is None else clips[rows]
    return TrainingInput(images, clips, prior)


def _map(path: Path) -> Images:
    images: Images = np.load(path, mmap_mode="c", allow_pickle=False)  # copy-on-write: torch needs writable memory
    return images
