"""Accept requests for estimates in the background within the limits on their number and bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import takewhile

from fastapi import Request

from service.contract.errors import QueueFull
from service.contract.quotas import EstimateLimits, PendingEstimate, check_estimate_limits
from service.estimates.request import Query, UploadedFiles, read_estimate
from service.estimates.schemas import BackgroundEstimate, EstimateProgress, EstimateStatus
from service.estimates.store import EstimateRecord, EstimateStore
from service.http.headers import idempotency_key
from service.http.requests import body_bytes
from service.runtime.concurrency import Threads
from service.runtime.settings import Settings
from service.versions.reader import Versions

_RECOUNT_BYTES = 64 * 2**20  # bytes of an upload after which the pending estimates are read again
_MAX_NAME = 200


class Arrivals:
    """Uploads of estimates to this gateway, in the order in which they began.

    An upload counts by the bytes received, not by those announced, so that a stalled one blocks no other. If the
    bytes of all do not fit, the uploads that began later are refused; uploads of other API keys do not count for the
    number of estimates.
    """

    def __init__(self, settings: Settings, threads: Threads, store: EstimateStore, versions: Versions) -> None:
        self._settings = settings
        self._threads = threads
        self._store = store
        self._versions = versions
        self._limits = EstimateLimits(
            settings.background_max_waiting,
            settings.background_per_key,
            settings.background_max_bytes,
            settings.background_key_bytes,
        )
        self._uploads: dict[PendingEstimate, None] = {}  # ordered

    async def accept(self, request: Request, owner: str | None) -> tuple[BackgroundEstimate, bool]:
        """Store a request's files and submit the estimate, unless the same request with its Idempotency-Key was before.

        Returns:
            The new or the earlier estimate, and whether an earlier request created it.

        Raises:
            KeyReused: another request had the same Idempotency-Key.
            QueueFull: a limit is reached.
            StorageFull: the disk is full.
            PPLError: the request is invalid, as far as that shows without reading the pictures.
        """
        store, io, key = self._store, self._threads.io, idempotency_key(request)
        request_key = hashlib.sha256(f"{owner or ''} {key}".encode()).hexdigest() if key else None
        upload = PendingEstimate(owner)
        self._uploads[upload] = None
        try:
            pending = await io(store.pending)
            announced = body_bytes(request.scope) if "content-length" in request.headers else 0
            self._check(upload, pending, announced)

            async def check_growth(size_bytes: int) -> None:
                nonlocal pending
                recounted, upload.size_bytes = upload.size_bytes // _RECOUNT_BYTES, size_bytes
                if size_bytes // _RECOUNT_BYTES > recounted:
                    pending = await io(store.pending)
                try:
                    self._check(upload, pending)
                except QueueFull:  # some may have ended since the last count
                    pending = await io(store.pending)
                    self._check(upload, pending)

            def check_submission(pending: Mapping[str, PendingEstimate]) -> None:
                self._check(upload, pending)
                del self._uploads[upload]  # it is pending from now on and must not count twice

            files = UploadedFiles(store, self._threads.upload, self._settings.image_max_bytes, check_growth)
            async with aclosing(files):
                record = await self._read(request, files, owner)
                submitted = await self._threads.upload(store.submit, record, check_submission, request_key)
                files.kept = submitted is record
        finally:
            self._uploads.pop(upload, None)
        return submitted.shown, submitted is not record

    async def _read(self, request: Request, files: UploadedFiles, owner: str | None) -> EstimateRecord:
        max_poses, io = self._settings.background_max_images, self._threads.io
        form = await read_estimate(request, max_poses, files, keep_images=True)
        video = form.first("video") is not None
        names = [part.filename[-_MAX_NAME:] for part in form.files]
        query = Query.parse(form.fields, names, max_poses, self._settings.max_images, video)
        version = await io(self._versions.version, query.category, query.version)
        query.check_memory(version)
        if query.landmarks:
            await io(self._versions.landmarks, version, query.landmarks)
        shown = BackgroundEstimate(
            id=files.estimate_id,
            status=EstimateStatus.QUEUED,
            category=query.category,
            version=version.name,
            format=query.format,
            created_at=datetime.now(UTC),
            progress=EstimateProgress(total=None if video else len(names)),
            created_by=owner,
        )
        return EstimateRecord(shown=shown, fields=form.fields, names=names, video=video, size_bytes=files.size_bytes)

    def _check(self, upload: PendingEstimate, pending: Mapping[str, PendingEstimate], more_bytes: int = 0) -> None:
        ahead = list(takewhile(lambda other: other is not upload, tuple(self._uploads)))
        check_estimate_limits(self._limits, list(pending.values()), ahead, upload, more_bytes)
