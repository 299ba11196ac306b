"""A request for training → its files where the worker reads them → a job, or the one that it made before."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

from fastapi import Request

from service.access import guard as access
from service.contract.errors import StoreCorrupt, TooMany
from service.contract.jobs.files import training_file, training_folder
from service.contract.jobs.store import Job, JobLimits, JobSource, NamedRequest
from service.contract.jobs.webhooks import check_webhook_url
from service.contract.media.archives import check_archive
from service.contract.versions.start_prior import document_of
from service.gateway.gateway import Gateway
from service.http.idempotency import fingerprint, key_of
from service.http.problems import StorageFull

from .base_version import Base
from .dataset_source import from_dataset
from .job_request import Asked, TrainingRequest
from .uploads import Intake, InThread

Read = Callable[[Request, Intake, InThread], Awaitable[Asked]]


async def accept_training(gateway: Gateway, request: Request, read: Read) -> tuple[Job, bool]:
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
    limits = JobLimits(gateway.settings.max_unfinished_jobs, gateway.settings.jobs_per_key)
    try:
        await gateway.io(gateway.jobs.check_room, owner, limits)
    except TooMany:
        # asked after the room: the same request, sent at the same time, may have taken the last of it
        if key is None or not await gateway.io(gateway.jobs.remembers, key, owner):
            raise
    intake = Intake(gateway.files, gateway.upload, gateway.settings.archive_max_bytes)
    try:
        asked = await read(request, intake, gateway.io)
        if asked.prior is not None:
            await intake.put_prior(document_of(asked.prior))
        named = await _named(gateway, key, asked, intake) if key is not None else None
        before = await gateway.io(gateway.jobs.made_by, named, owner) if named else None
        if before is not None:
            return before, True
        wanted, source = await _prepare(gateway, asked, intake)
        job = await gateway.io(
            gateway.jobs.create,
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


async def _named(gateway: Gateway, key: str, asked: Asked, intake: Intake) -> NamedRequest:
    came = [file.path for file in (intake.archive, intake.labels) if not file.is_empty]
    came += [gateway.files.prior(intake.job_id)] if asked.prior is not None else []
    digest = await gateway.upload(fingerprint, asked.stated(), came)
    return NamedRequest(key, digest, gateway.settings.idempotency_ttl_s)


async def _prepare(gateway: Gateway, asked: Asked, intake: Intake) -> tuple[TrainingRequest, JobSource]:
    """All that the job needs is looked at, and on the disk for good."""
    wanted: TrainingRequest = await gateway.io(asked.request, gateway.versions.store)
    wanted, source = await _find(gateway, asked, wanted, intake)
    wanted.check_processes(gateway.settings.training_processes)
    if wanted.webhook_url is not None:
        check_webhook_url(wanted.webhook_url, private=gateway.settings.webhook_private)
    if wanted.prior and asked.prior is None:
        await intake.put_prior(document_of(wanted.prior))
    if wanted.base:
        await _link_start(gateway, wanted.base, intake)
    await intake.sync()
    return wanted, source


async def _find(
    gateway: Gateway, asked: Asked, wanted: TrainingRequest, intake: Intake
) -> tuple[TrainingRequest, JobSource]:
    """The pictures to train on, and the labels that lie on the server."""
    root = gateway.settings.data_root
    if asked.folder is not None:
        folder = await gateway.io(training_folder, root, asked.folder)
        await gateway.upload(check_archive, folder, gateway.archive_limits, wanted.config.mode)
    if asked.labels is not None:
        await intake.copy_labels(await gateway.io(training_file, root, asked.labels))
    if asked.dataset is not None:
        return await from_dataset(gateway, wanted, asked.dataset, intake)
    if asked.folder is not None:
        return wanted, JobSource(kind="folder", folder=asked.folder)
    await gateway.upload(check_archive, intake.archive.path, gateway.archive_limits, wanted.config.mode)
    return wanted, JobSource(name=intake.archive.name or None)


async def _link_start(gateway: Gateway, base: Base, intake: Intake) -> None:
    """Raises UnknownVersion, StoreCorrupt."""
    try:
        await intake.link_start(base.weights)
    except FileNotFoundError as error:
        category, version = base.continued.category, base.continued.version
        await gateway.io(gateway.versions.store.stamp, category, version)  # it may have been deleted meanwhile
        raise StoreCorrupt(f"version '{version}' of category '{category}' lacks its weights") from error
