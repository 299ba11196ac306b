"""A request for training → its files where the worker reads them → a job, or the one that it made before."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from service.access import guard as access
from service.contract.datasets.store import DatasetFiles
from service.contract.errors import StoreCorrupt, TooMany
from service.contract.jobs.files import JobFiles, training_file, training_folder
from service.contract.jobs.store import Job, JobSource, JobStore, NamedRequest
from service.contract.jobs.webhooks import check_webhook_url
from service.contract.media.archives import ArchiveLimits, check_archive
from service.contract.quotas import JobLimits
from service.contract.versions.start_prior import document_of
from service.contract.versions.store import VersionStore
from service.http.idempotency import fingerprint, key_of
from service.http.problems import StorageFull
from service.runtime.settings import Settings
from service.runtime.threads import Threads

from .base_version import Base
from .dataset_source import from_dataset
from .job_request import Asked, TrainingRequest
from .uploads import Intake, InThread

Read = Callable[[Request, Intake, InThread], Awaitable[Asked]]


@dataclass(frozen=True)
class TrainingParts:
    """The parts of the gateway that accepting a training job uses."""

    settings: Settings
    threads: Threads
    jobs: JobStore
    files: JobFiles
    datasets: DatasetFiles
    versions: VersionStore


async def accept_training(parts: TrainingParts, request: Request, read: Read) -> tuple[Job, bool]:
    """Take a request's files to where the worker reads them; they are gone again unless a job comes of it.

    One that was served before under the same Idempotency-Key is answered by what it says alone: whatever it names
    may have gone since.

    Args:
        read: what the body says; its files are on disk afterwards.

    Returns:
        The job, and whether an earlier request of the same key had made it.
    """
    key, asking = key_of(request), access.key_of(request)
    owner = asking.id if asking else None
    limits = JobLimits(parts.settings.max_unfinished_jobs, parts.settings.jobs_per_key)
    try:
        await parts.threads.io(parts.jobs.check_room, owner, limits)
    except TooMany:
        # asked after the room: the same request, sent at the same time, may have taken the last of it
        if key is None or not await parts.threads.io(parts.jobs.remembers, key, owner):
            raise
    intake = Intake(parts.files, parts.threads.upload, parts.settings.archive_max_bytes)
    try:
        asked = await read(request, intake, parts.threads.io)
        if asked.prior is not None:
            await intake.put_prior(document_of(asked.prior))
        named = await _named(parts, key, asked, intake) if key is not None else None
        before = await parts.threads.io(parts.jobs.made_by, named, owner) if named else None
        if before is not None:
            return before, True
        wanted, source = await _prepare(parts, asked, intake)
        job = await parts.threads.io(
            parts.jobs.create,
            wanted.category,
            {"preset": wanted.preset, **wanted.config.to_dict()},
            wanted.config.steps,
            source,
            intake.job_id,
            wanted.activate,
            named,
            owner,
            limits,
            wanted.webhook_url,
            wanted.base.continued if wanted.base else None,
        )
        if job.id != intake.job_id:  # the same request came twice at once
            return job, True
        intake.hand_over()
        return job, False
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("the server has no room for this upload; its owner must free some") from error
        raise
    finally:
        await intake.close()


async def _named(parts: TrainingParts, key: str, asked: Asked, intake: Intake) -> NamedRequest:
    came = [file.path for file in (intake.archive, intake.labels) if not file.is_empty]
    came += [parts.files.prior(intake.job_id)] if asked.prior is not None else []
    digest = await parts.threads.upload(fingerprint, asked.stated(), came)
    return NamedRequest(key, digest, parts.settings.idempotency_ttl_s)


async def _prepare(parts: TrainingParts, asked: Asked, intake: Intake) -> tuple[TrainingRequest, JobSource]:
    """All that the job needs is looked at, and on the disk for good."""
    wanted: TrainingRequest = await parts.threads.io(asked.request, parts.versions)
    wanted, source = await _find(parts, asked, wanted, intake)
    wanted.check_processes(parts.settings.training_processes)
    if wanted.webhook_url is not None:
        check_webhook_url(wanted.webhook_url, private=parts.settings.webhook_private)
    if wanted.prior and asked.prior is None:
        await intake.put_prior(document_of(wanted.prior))
    if wanted.base:
        await _link_start(parts, wanted.base, intake)
    await intake.sync()
    return wanted, source


async def _find(
    parts: TrainingParts, asked: Asked, wanted: TrainingRequest, intake: Intake
) -> tuple[TrainingRequest, JobSource]:
    """The pictures to train on, and the labels that lie on the server."""
    root = parts.settings.data_root
    if asked.folder is not None:
        folder = await parts.threads.io(training_folder, root, asked.folder)
        await parts.threads.upload(check_archive, folder, ArchiveLimits.of(parts.settings), wanted.config.mode)
    if asked.labels is not None:
        await intake.copy_labels(await parts.threads.io(training_file, root, asked.labels))
    if asked.dataset is not None:
        return await from_dataset(parts.datasets, parts.threads, wanted, asked.dataset, intake)
    if asked.folder is not None:
        return wanted, JobSource(kind="folder", folder=asked.folder)
    await parts.threads.upload(check_archive, intake.archive.path, ArchiveLimits.of(parts.settings), wanted.config.mode)
    return wanted, JobSource(name=intake.archive.name or None)


async def _link_start(parts: TrainingParts, base: Base, intake: Intake) -> None:
    """Raises UnknownVersion, StoreCorrupt."""
    try:
        await intake.link_start(base.weights)
    except FileNotFoundError as error:
        category, version = base.continued.category, base.continued.version
        await parts.threads.io(parts.versions.stamp, category, version)  # it may have been deleted meanwhile
        raise StoreCorrupt(f"version '{version}' of category '{category}' lacks its weights") from error
