"""Work on the estimates that wait in the background; an interrupted one continues where it stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Container, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from service.contract.durable_files import is_disk_full
from service.contract.errors import PPLError, StoreUnavailable, UnknownEstimate
from service.contract.jobs.job import JobError
from service.contract.media.pictures import PictureLimits
from service.estimates.estimator import Estimator, Pipeline
from service.estimates.locating import locate_pictures
from service.estimates.pictures import Source, Upload
from service.estimates.request import Query
from service.estimates.results import Outcome, StoredOutcomes
from service.estimates.schemas import EstimateStatus
from service.estimates.store import ClaimLost, EstimateRecord, EstimateStore
from service.estimates.video_frames import read_frames, video_limits
from service.http.problems import disk_full
from service.runtime.concurrency import cancel_tasks
from service.versions.reader import Versions

from .finishing import ResultFiles

log = logging.getLogger(__name__)

AT_ONCE = 4
VIDEO_TIMEOUT_S = 48 * 3600.0
_POLL_S = 1.0
_POSTPONE_S = 60.0
_MAX_OWNERS = 1000


class FairTurns:
    """A fair order of estimates among API keys: many of one key do not delay those of others."""

    def __init__(self) -> None:
        self._turn = 0
        self._last_turns: dict[str | None, int] = {}  # by API key, the longest ago first

    def choose(self, waiting: Mapping[str, str | None], running: Iterable[str | None]) -> str:
        """Return the id of the next estimate, given the API keys of the waiting and the running ones.

        The key with the fewest running estimates is next; among several, the one with the oldest last turn. Its
        oldest estimate is chosen.
        """
        counts = Counter(running)
        return min(waiting, key=lambda name: (counts[waiting[name]], self._last_turns.get(waiting[name], 0), name))

    def record(self, owner: str | None) -> None:
        """Record that an estimate of a key was started."""
        self._turn += 1
        self._last_turns.pop(owner, None)
        self._last_turns[owner] = self._turn
        if len(self._last_turns) > _MAX_OWNERS:
            del self._last_turns[next(iter(self._last_turns))]


class BackgroundRunner:
    """A runner of a few background estimates at a time; each gateway runs others.

    Their pictures join the batches of all requests, which are delayed by no more than the batches in flight.
    """

    def __init__(self, pipeline: Pipeline, store: EstimateStore, versions: Versions) -> None:
        self._pipeline = pipeline
        self._settings = pipeline.settings
        self._io = pipeline.threads.io
        self._store = store
        self._versions = versions
        self._rendering = asyncio.Lock()  # one at a time: a response is in memory as a whole
        self._running: dict[str, asyncio.Task[None]] = {}
        self._postponed: dict[str, float] = {}  # do not retry before this time, by id
        self._owners: dict[str, str | None] = {}  # of those that wait
        self._turns = FairTurns()

    async def start_waiting(self) -> None:
        """Start estimates that wait and that no other gateway holds, each API key in turn."""
        now = time.monotonic()
        self._running = {name: task for name, task in self._running.items() if not task.done()}
        self._postponed = {name: until for name, until in self._postponed.items() if until > now}
        waiting = await self._io(self._store.list_waiting)
        new = [name for name in waiting if name not in self._owners]
        if new:
            found = await self._io(self._store.pending, new)
            self._owners |= {name: estimate.owner for name, estimate in found.items()}
        self._owners = {name: self._owners[name] for name in waiting if name in self._owners}
        taken = {*self._running, *self._postponed}
        free = {name: self._owners.get(name) for name in waiting if name not in taken}
        while free and len(self._running) < AT_ONCE:
            estimate_id = self._turns.choose(free, map(self._owners.get, self._running))
            owner = free.pop(estimate_id)
            claim = self._store.claim(estimate_id)
            # estimates that another gateway holds take no place here
            if await self._enter(claim, estimate_id):
                self._turns.record(owner)
                self._running[estimate_id] = asyncio.create_task(self._run(claim, estimate_id))

    async def close(self) -> None:
        """Leave running estimates to the next gateway, or to this one after its restart."""
        await cancel_tasks(self._running.values())

    async def _enter(self, claim: AbstractContextManager[bool], estimate_id: str) -> bool:
        """Return whether the claim was acquired; if not, nothing is locked."""
        try:
            if await self._io(claim.__enter__):
                return True
            await self._io(claim.__exit__, None, None, None)
        except UnknownEstimate:
            pass
        except (PPLError, OSError):
            self._postpone(estimate_id)
        return False

    async def _run(self, claim: AbstractContextManager[bool], estimate_id: str) -> None:
        try:
            await self._io(self._store.complete, estimate_id)
            await self._finish(await self._io(self._store.record, estimate_id))
        except UnknownEstimate:
            pass
        except (PPLError, OSError):  # the record can't be read or written, or another gateway has it by now
            self._postpone(estimate_id)
        finally:
            await self._io(claim.__exit__, None, None, None)

    def _postpone(self, estimate_id: str) -> None:
        log.exception("estimate postponed for %g s: estimate=%s", _POSTPONE_S, estimate_id)
        self._postponed[estimate_id] = time.monotonic() + _POSTPONE_S

    async def _finish(self, record: EstimateRecord) -> None:
        """Estimate, and write the final status."""
        shown, end = record.shown, self._store.end
        if shown.status.ended:  # the gateway crashed right after writing it
            await self._io(end, record, shown.status, shown.error)
            return
        status, fault = EstimateStatus.FAILED, None
        try:
            status = await self._estimate(record)
        except (ClaimLost, StoreUnavailable):  # it may continue
            raise
        except PPLError as error:
            fault = error
            log.warning("estimate failed: estimate=%s: %s", shown.id, error.detail)
        except Exception as error:  # a full disk, or a bug; its owner sees that it failed, and the others continue
            unexpected = PPLError("an unexpected error of the server; see its log")
            fault = disk_full() if is_disk_full(error) else unexpected
            log.exception("estimate failed: estimate=%s", shown.id)
        await self._io(end, record, status, JobError(**fault.to_dict()) if fault else None)
        log.info("estimate ended: estimate=%s status=%s pictures=%d", shown.id, status, shown.progress.done)
        removed = await self._io(self._store.trim_results, self._settings.background_results_bytes)
        if removed:
            log.info("oldest results removed to free space: estimates=%s", ",".join(removed))

    async def _estimate(self, record: EstimateRecord) -> EstimateStatus:
        shown, settings, io = record.shown, self._settings, self._io
        max_poses, max_boxes = settings.background_max_images, settings.max_images
        query = Query.parse(record.fields, record.names, max_poses, max_boxes, record.video)
        version = await io(self._versions.version, shown.category, shown.version)
        query, version = query.fit_to(version), query.list_links_of(version)
        landmarks = await io(self._versions.landmarks, version, query.landmarks) if query.landmarks else None
        started = time.perf_counter()
        lines = self._store.path(shown.id, "lines")
        done = await io(StoredOutcomes, lines)
        shown.progress.done, shown.progress.failed = len(done), done.failed
        shown.status, shown.started_at = EstimateStatus.RUNNING, shown.started_at or datetime.now(UTC)
        await io(self._store.write, record)
        estimator = Estimator(self._pipeline, query, version, landmarks, patient=True)
        outcomes = estimator.stream(await self._sources(record, query, version.side, done))
        await io(_truncate, lines, done.end)
        if not await self._store_outcomes(record, outcomes):
            return EstimateStatus.CANCELLED
        shown.progress.total = shown.progress.done

        marks = landmarks.names if landmarks else ()
        files = ResultFiles(self._store, record, query, version, started, marks)
        decode = self._pipeline.threads.decode

        async def is_cancelled() -> bool:
            return await io(self._store.is_cancelled, shown.id)

        async with self._rendering:
            await decode(files.smooth)
        problems = await files.draw(video_limits(settings, VIDEO_TIMEOUT_S), is_cancelled)
        if await is_cancelled():
            return EstimateStatus.CANCELLED
        async with self._rendering:
            await decode(files.store, problems)
        return EstimateStatus.SUCCEEDED

    async def _store_outcomes(self, record: EstimateRecord, outcomes: AsyncGenerator[Outcome]) -> bool:
        """Store outcomes as they come, and the progress. Returns False once the owner cancelled."""
        io, shown = self._io, record.shown
        lines = self._store.path(shown.id, "lines")
        upcoming = asyncio.ensure_future(anext(outcomes, None))
        polled = time.monotonic()
        try:
            while True:
                await asyncio.wait((upcoming,), timeout=_POLL_S)
                if upcoming.done():
                    outcome = upcoming.result()
                    if outcome is None:
                        return not await io(self._store.is_cancelled, shown.id)
                    upcoming = asyncio.ensure_future(anext(outcomes, None))
                    shown.progress.done += 1
                    shown.progress.failed += outcome.error is not None
                    await io(_append, lines, outcome)
                if time.monotonic() - polled >= _POLL_S:
                    if await io(self._store.is_cancelled, shown.id):
                        return False
                    await io(self._store.write, record)
                    polled = time.monotonic()
        finally:
            await cancel_tasks((upcoming,))
            await outcomes.aclose()

    async def _sources(
        self, record: EstimateRecord, query: Query, side: int, done: Container[int]
    ) -> AsyncGenerator[Source] | Iterable[Source]:
        estimate_id, settings = record.shown.id, self._settings
        if query.every:
            path, limits = self._store.picture(estimate_id, 0), video_limits(settings, VIDEO_TIMEOUT_S)
            threads, max_poses = self._pipeline.threads, settings.background_max_frames
            return read_frames(path, query, side, limits, threads, max_poses=max_poses, skip=done)
        uploads = [
            Upload(index, name, self._store.picture(estimate_id, index).read_bytes, boxes)
            for index, (name, boxes) in enumerate(zip(query.names, query.boxes, strict=True))
        ]
        if query.locate == "motion":
            more = PictureLimits.of(settings), query.is_aligned
            uploads = await self._pipeline.threads.video(locate_pictures, uploads, *more)
        return (upload for upload in uploads if upload.index not in done)


def _truncate(lines: Path, end: int) -> None:
    """Remove a truncated last line."""
    with lines.open("ab") as file:
        file.truncate(end)


def _append(lines: Path, outcome: Outcome) -> None:
    # opened each time, so that a cancelled task leaves no open file
    with lines.open("ab") as file:
        file.write(outcome.to_line())
