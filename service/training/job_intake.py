"""Accept training requests, and estimate when waiting jobs will be done.

Accepting stores a request's files where the worker reads them, and creates a job or finds the earlier one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace
from pathlib import Path

from fastapi import Request

from model.config import PPLConfig
from service.access import guard as access
from service.contract.datasets.dataset import DatasetStatus
from service.contract.datasets.store import DatasetFiles
from service.contract.durable_files import write_json
from service.contract.errors import (
    BadBoxes,
    BadLabels,
    BadRequest,
    BadSetting,
    DatasetNotReady,
    PPLError,
    StoreCorrupt,
    TooMany,
    UnknownDataset,
)
from service.contract.jobs.files import JobFiles, document_of, training_file, training_folder
from service.contract.jobs.job import Job, JobStatus
from service.contract.jobs.progress import PaceBook
from service.contract.jobs.record import JobRecord
from service.contract.jobs.store import JobSource, JobStore, NamedRequest, NewJob
from service.contract.jobs.webhooks import check_webhook_url
from service.contract.media.archives import ArchiveLimits, check_archive
from service.contract.media.boxes import parse_box_file
from service.contract.media.locating import fills_frames
from service.contract.quotas import JobLimits
from service.contract.versions.store import VersionStore
from service.http.headers import fingerprint, idempotency_key
from service.http.multipart import InThread
from service.runtime.concurrency import Threads
from service.runtime.settings import Settings

from .job_request import JobUpload, TrainingPlan, TrainingRequest, bad_settings
from .label_check import check_boxes, check_labels

Read = Callable[[Request, JobUpload, InThread], Awaitable[TrainingRequest]]

# Positions need the records of all unfinished jobs. With many jobs, reading them takes at most 1 / _IDLE_RATIO of
# the time: the result is reused for _IDLE_RATIO times as long as it took.
_FEW_JOBS = 50
_IDLE_RATIO = 20
_WAITING = (JobStatus.VALIDATING, JobStatus.QUEUED)


@dataclass(frozen=True)
class TrainingParts:
    """The parts of the gateway that accept training jobs and datasets."""

    settings: Settings
    threads: Threads
    jobs: JobStore
    files: JobFiles
    datasets: DatasetFiles
    versions: VersionStore


async def accept_training(parts: TrainingParts, request: Request, read: Read) -> tuple[Job, bool]:
    """Create a job from a request, or find the job of an earlier request with the same Idempotency-Key.

    A repeated request is recognised by its own content: the versions and datasets that it names may be deleted.

    Args:
        read: read_json or read_upload.

    Returns:
        The job, and whether an earlier request created it.
    """
    key, api_key = idempotency_key(request), access.api_key_of(request.scope)
    owner = api_key.id if api_key else None
    limits = JobLimits(parts.settings.max_unfinished_jobs, parts.settings.jobs_per_key)
    try:
        await parts.threads.io(parts.jobs.check_room, owner, limits)
    except TooMany:
        # after check_room: the same request, sent concurrently, may have taken the last place
        if key is None or not await parts.threads.io(parts.jobs.has_request, key, owner):
            raise
    async with JobUpload(parts.files, parts.threads.upload, parts.settings.archive_max_bytes) as upload:
        requested = await read(request, upload, parts.threads.io)
        if requested.prior is not None:
            await upload.put(upload.prior.name, write_json, document_of(requested.prior))
        named = None
        if key is not None:
            files = [file.path for file in (upload.archive, upload.labels, upload.boxes) if not file.is_empty]
            files += [upload.prior] if requested.prior is not None else []
            digest = await parts.threads.upload(fingerprint, requested.fingerprint_values(), files)
            named = NamedRequest(key, digest, parts.settings.idempotency_ttl_s)
            earlier = await parts.threads.io(parts.jobs.find_by_request, named, owner)
            if earlier is not None:
                return earlier, True
        plan, source = await _prepare(parts, requested, upload)
        new = NewJob(
            requested.category,
            {"preset": plan.preset, **plan.config.to_dict()},
            plan.config.steps,
            source=source,
            job_id=upload.job_id,
            activate=requested.activate,
            owner=owner,
            webhook_url=requested.webhook_url,
            continued_from=plan.continued,
        )
        await parts.threads.upload(parts.files.hand_over, upload.job_id)
        try:
            job = await parts.threads.io(parts.jobs.create, new, named, limits)
        except PPLError:
            await parts.threads.upload(parts.files.remove, upload.job_id)
            raise
        if job.id != upload.job_id:  # the same request, sent concurrently, was first
            await parts.threads.upload(parts.files.remove, upload.job_id)
            return job, True
        upload.keep()
        return job, False


async def _prepare(
    parts: TrainingParts, requested: TrainingRequest, upload: JobUpload
) -> tuple[TrainingPlan, JobSource]:
    """Check everything that the job needs, and put it on disk durably."""
    plan: TrainingPlan = await parts.threads.io(requested.resolve, parts.versions)
    plan, source = await _find_pictures(parts, requested, plan, upload)
    await parts.threads.upload(_check_locatable, upload.boxes.path, plan.config)
    with bad_settings():
        plan.config.check_processes(parts.settings.training_processes)
    if requested.webhook_url is not None:
        check_webhook_url(requested.webhook_url, private=parts.settings.webhook_private)
    if plan.prior and requested.prior is None:
        await upload.put(upload.prior.name, write_json, document_of(plan.prior))
    if plan.continued:
        await _link_weights(parts, plan.continued.category, plan.continued.version, upload)
    await upload.sync()
    return plan, source


async def _find_pictures(
    parts: TrainingParts, requested: TrainingRequest, plan: TrainingPlan, upload: JobUpload
) -> tuple[TrainingPlan, JobSource]:
    """Check the pictures and boxes to train on, and copy labels and boxes that are on the server."""
    root = parts.settings.data_root
    for name, file, error in ((requested.labels, upload.labels, BadLabels), (requested.boxes, upload.boxes, BadBoxes)):
        if name is not None:
            source_file = await parts.threads.io(training_file, root, name, error)
            await upload.put(file.path.name, _copy, source_file, file.max_bytes, error)
    if requested.boxes is not None or not upload.boxes.is_empty:
        await parts.threads.upload(lambda: parse_box_file(upload.boxes.path.read_bytes()))
    if requested.dataset is not None:
        return await _link_dataset(parts, plan, requested.dataset, upload)
    pictures, source = upload.archive.path, JobSource(name=upload.archive.name or None)
    if requested.folder is not None:
        pictures = await parts.threads.io(training_folder, root, requested.folder)
        source = JobSource(kind="folder", folder=requested.folder)
    summary = await parts.threads.upload(check_archive, pictures, ArchiveLimits.of(parts.settings), plan.config.mode)
    if await parts.threads.io(upload.labels.path.exists):
        await _check_labels(parts, upload, pictures, summary.mode, plan.config.labels_fit)
    if await parts.threads.io(upload.boxes.path.exists):
        await _check_boxes(parts, upload, pictures, upload.archive.name or None)
    return plan, source


def _check_locatable(boxes: Path, config: PPLConfig) -> None:
    """Raise BadBoxes or BadSetting if motion can't be used as it must, or no heading can be known. Blocking."""
    if not boxes.exists():
        if config.align == "heading" and config.locate == "off":
            raise BadSetting(
                "align is heading, locate is off and no boxes came, so no heading can be known; send boxes with "
                "angles, or set locate to auto or motion",
                extra={"field": "align"},
            )
        return
    file = parse_box_file(boxes.read_bytes())
    fills = fills_frames(config.locate, file)
    if config.align == "heading" and not (fills or file.has_angles):
        other = "leave the boxes out" if file.has_animals else "set locate to motion"
        raise BadBoxes(
            "align is heading, and no box has an angle; add a column angle to our CSV (the thing's heading in degrees "
            f"clockwise from up), {other} to find it by motion before a fixed camera, or set align to off"
        )


async def _check_labels(parts: TrainingParts, upload: JobUpload, pictures: Path, mode: str, labels_fit: str) -> None:
    files, limits = (upload.labels.path, pictures), ArchiveLimits.of(parts.settings)
    more = mode, upload.archive.name or None, labels_fit, upload.boxes.path
    await parts.threads.upload(check_labels, *files, limits, *more)


async def _check_boxes(parts: TrainingParts, upload: JobUpload, pictures: Path, video_name: str | None) -> None:
    files = upload.boxes.path, pictures
    await parts.threads.upload(check_boxes, *files, ArchiveLimits.of(parts.settings), video_name)


async def _link_dataset(
    parts: TrainingParts, plan: TrainingPlan, dataset_id: str, upload: JobUpload
) -> tuple[TrainingPlan, JobSource]:
    """Use a dataset's files. The job's own mode, labels and boxes, if given, take precedence over the dataset's.

    A dataset that is still being inspected is accepted: the job checks its pictures itself.

    Raises:
        UnknownDataset, StoreCorrupt.
        DatasetNotReady: none of its pictures can be used.
    """
    datasets = parts.datasets
    record = await parts.threads.io(datasets.record, dataset_id)
    findings = await parts.threads.io(datasets.findings, dataset_id)
    if findings.status is DatasetStatus.FAILED:
        reason = findings.error.detail if findings.error else "nothing in it can be used"
        raise DatasetNotReady(f"dataset {dataset_id} can't be used for training: {reason}")
    await parts.threads.upload(datasets.complete, dataset_id)
    has_labels, has_boxes = [await parts.threads.io(file.path.exists) for file in (upload.labels, upload.boxes)]
    try:
        await upload.put(upload.archive.path.name, _link, datasets.archive(dataset_id))
        if record.labels and not has_labels:
            await upload.put(upload.labels.path.name, _link, datasets.labels(dataset_id))
        if record.boxes and not has_boxes:
            await upload.put(upload.boxes.path.name, _link, datasets.boxes(dataset_id))
        if has_labels or (record.labels and has_boxes):
            mode = record.mode if plan.config.mode == "auto" else plan.config.mode
            await _check_labels(parts, upload, datasets.archive(dataset_id), mode, plan.config.labels_fit)
        if has_boxes:
            await _check_boxes(parts, upload, datasets.archive(dataset_id), record.file_name)
    except FileNotFoundError as error:
        raise UnknownDataset(
            f"dataset {dataset_id} was deleted during the request; GET /datasets lists the others"
        ) from error
    if plan.config.mode == "auto":
        plan = replace(plan, config=replace(plan.config, mode=record.mode))
    return plan, JobSource(name=record.file_name, dataset=record.reference)


async def _link_weights(parts: TrainingParts, category: str, version: str, upload: JobUpload) -> None:
    """Raise UnknownVersion or StoreCorrupt if the version has no weights any more."""
    try:
        await upload.put(upload.start.name, _link, parts.versions.weights_path(category, version))
    except FileNotFoundError as error:
        await parts.threads.io(parts.versions.identity, category, version)  # raises if the version was deleted
        raise StoreCorrupt(f"version '{version}' of category '{category}' lacks its weights") from error


def _link(path: Path, source: Path) -> None:
    """Hard-link a file that never changes, so that it outlives its other names; copy it where links are impossible."""
    try:
        os.link(source, path)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, path)


def _copy(path: Path, source: Path, max_bytes: int, error: type[BadRequest]) -> None:
    size = source.stat().st_size
    if not 0 < size <= max_bytes:
        raise error(f"the {path.name} have {size} bytes; expected 1 to {max_bytes}")
    shutil.copyfile(source, path)


class JobQueue:
    """The jobs that wait for a training worker, in the order in which workers take them.

    That is the order of their messages. A job that is still being validated has no message and goes last.

    Args:
        count_workers: returns the number of live training workers.
    """

    def __init__(self, jobs: JobStore, paces: PaceBook, count_workers: Callable[[], int]) -> None:
        self._jobs = jobs
        self._paces = paces
        self._count_workers = count_workers
        self._places: dict[str, tuple[int, float | None]] = {}  # queue position and ETA
        self._expires = 0.0

    def add_position(self, job: Job) -> Job:
        """Return a job with its queue position and ETA, if it waits."""
        return self.add_positions([job])[0]

    def add_positions(self, jobs: Sequence[Job]) -> list[Job]:
        """Return jobs with the queue positions and ETAs of those that wait; with many, about a second old."""
        waiting = [job.id for job in jobs if job.status in _WAITING]
        places = self._places
        if waiting and (time.monotonic() > self._expires or not all(job_id in places for job_id in waiting)):
            started = time.monotonic()
            self._places = places = self._compute_places()
            ended = time.monotonic()
            self._expires = ended + (_IDLE_RATIO * (ended - started) if len(places) > _FEW_JOBS else 0.0)
        return [_add_place(job, *places[job.id]) if job.id in places else job for job in jobs]

    def read_step_s(self) -> float | None:
        """Return the seconds that a step took in the last training with default settings; None before there was one."""
        plan = TrainingPlan.make(None, {}, None)
        settings = {"preset": plan.preset, **plan.config.to_dict()}
        pace = self._paces.of(settings)
        return round(pace.seconds(settings) / plan.config.steps, 4) if pace else None

    def _compute_places(self) -> dict[str, tuple[int, float | None]]:
        unfinished = self._jobs.list_unfinished()
        order = {job_id: place for place, job_id in enumerate(self._jobs.waiting_order())}
        waiting = [record for record in unfinished if record.job.status in _WAITING]
        # a message that is about to be sent goes to the head of the queue if `ahead`, else to its end
        ends = {record.job.id: -1 if record.ahead else len(order) for record in waiting}
        waiting.sort(key=lambda record: (order.get(record.job.id, ends[record.job.id]), record.job.id))
        # seconds until each worker is free; none from the first job on whose duration is unknown
        free = self._busy_s([record for record in unfinished if record.job.status is JobStatus.RUNNING])
        places: dict[str, tuple[int, float | None]] = {}
        for position, record in enumerate(waiting, 1):
            settings = record.job.settings
            pace = self._paces.of(settings) if free else None
            places[record.job.id] = position, None
            if pace is None:
                free = []
                continue
            end_s = free[0] + pace.seconds(settings, record.checkpointed)
            heapreplace(free, end_s)
            places[record.job.id] = position, round(end_s, 1)
        return places

    def _busy_s(self, running: list[JobRecord]) -> list[float]:
        """Return the seconds until each worker is free, sorted; empty if unknown."""
        etas = [eta_s for record in running if (eta_s := record.job.progress.eta_s) is not None]
        idle = [0.0] * (self._count_workers() - len(running))
        return sorted([*etas, *idle]) if len(etas) == len(running) else []


def _add_place(job: Job, position: int, eta_s: float | None) -> Job:
    if job.status not in _WAITING:
        return job
    progress = job.progress.model_copy(update={"eta_s": eta_s})
    return job.model_copy(update={"queue_position": position, "progress": progress})
