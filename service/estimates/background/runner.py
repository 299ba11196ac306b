"""Works on the estimates that wait in the background; what is half done goes on where it was."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Container, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from service.contract.durable_files import atomic_write
from service.contract.errors import PPLError, UnknownEstimate
from service.contract.jobs.job import JobError
from service.contract.media.videos import VideoLimits
from service.estimates.document import WrittenOutcomes, as_line, document
from service.estimates.estimator import Estimator, Source
from service.estimates.pictures import Upload
from service.estimates.query import Query
from service.estimates.results import Outcome
from service.estimates.schemas import EstimateStatus
from service.estimates.video_frames import VideoFrames, with_failure
from service.runtime.settings import Settings
from service.runtime.threads import cancel_tasks

from .store import EstimateFiles, EstimateRecord

if TYPE_CHECKING:
    from service.gateway.gateway import Gateway

log = logging.getLogger(__name__)

AT_ONCE = 4
_LOOK_EVERY_S = 1.0
_PUT_OFF_S = 60.0
_KEYS_REMEMBERED = 1000
VIDEO_TIMEOUT_S = 12 * 3600.0


class Turns:
    """Whose turn it is, of the API keys whose estimates wait: one that sends many holds up its own only.

    The next is of a key that has the fewest under way, of these of the one that had its turn the longest ago, and of
    these the oldest.
    """

    def __init__(self) -> None:
        self._turn = 0
        self._had: dict[str | None, int] = {}  # the turn at which a key had its last one; the longest ago comes first

    def next(self, waiting: Mapping[str, str | None], running: Iterable[str | None]) -> str:
        """The id that is taken up next.

        Args:
            waiting: the keys of those that can be taken up, by id; at least one.
            running: the keys of those that are under way.
        """
        under_way = Counter(running)
        return min(waiting, key=lambda name: (under_way[waiting[name]], self._had.get(waiting[name], 0), name))

    def taken(self, owner: str | None) -> None:
        """One of a key was taken up."""
        self._turn += 1
        self._had.pop(owner, None)
        self._had[owner] = self._turn
        if len(self._had) > _KEYS_REMEMBERED:
            del self._had[next(iter(self._had))]


class Background:
    """Works on a few estimates at a time; each gateway on others.

    The pictures that wait for a batch are those of everybody, so requests that somebody waits for are not held up by
    more than the batches under way.
    """

    def __init__(self, gateway: Gateway, files: EstimateFiles) -> None:
        self._gateway = gateway
        self._files = files
        self._writing = asyncio.Lock()  # one answer after the other: each is held in memory as a whole
        self._running: dict[str, asyncio.Task[None]] = {}
        self._put_off: dict[str, float] = {}  # which can't be worked on, and until when they are let be
        self._owners: dict[str, str | None] = {}  # of those that wait
        self._turns = Turns()

    async def round(self) -> None:
        """Take up what waits and nobody else has, as far as there is room; each API key in turn."""
        now = time.monotonic()
        self._running = {name: task for name, task in self._running.items() if not task.done()}
        self._put_off = {name: until for name, until in self._put_off.items() if until > now}
        waiting = await self._gateway.threads.io(self._files.waiting)
        new = [estimate_id for estimate_id in waiting if estimate_id not in self._owners]
        if new:
            self._owners |= await self._gateway.threads.io(self._files.owners, new)
        self._owners = {name: self._owners[name] for name in waiting if name in self._owners}
        free = {
            name: self._owners.get(name) for name in waiting if name not in self._running and name not in self._put_off
        }
        while free and len(self._running) < AT_ONCE:
            estimate_id = self._turns.next(free, map(self._owners.get, self._running))
            owner = free.pop(estimate_id)
            claim = self._files.working(estimate_id)
            # those that others have, or nobody can have, take up no room here
            if await self._entered(claim, estimate_id):
                self._turns.taken(owner)
                self._running[estimate_id] = asyncio.create_task(self._hold(claim, estimate_id))

    async def close(self) -> None:
        """Leave what is under way to the next gateway, or to this one after its restart."""
        await cancel_tasks(self._running.values())

    async def _entered(self, claim: AbstractContextManager[bool], estimate_id: str) -> bool:
        """Whether a claim is ours; if it is not, nothing is held."""
        try:
            if await self._gateway.threads.io(claim.__enter__):
                return True
            await self._gateway.threads.io(claim.__exit__, None, None, None)
        except UnknownEstimate:
            pass
        except OSError:
            self._let_be(estimate_id)
        return False

    async def _hold(self, claim: AbstractContextManager[bool], estimate_id: str) -> None:
        io = self._gateway.threads.io
        try:
            await self._work(await io(self._files.record, estimate_id))
        except UnknownEstimate:
            pass
        except (PPLError, OSError):  # its record can't be read or written
            self._let_be(estimate_id)
        finally:
            await io(claim.__exit__, None, None, None)

    def _let_be(self, estimate_id: str) -> None:
        log.exception("estimate %s can't be worked on; it is tried again in %g s", estimate_id, _PUT_OFF_S)
        self._put_off[estimate_id] = time.monotonic() + _PUT_OFF_S

    async def _work(self, record: EstimateRecord) -> None:
        io, shown = self._gateway.threads.io, record.shown
        if shown.status.ended:  # killed right after its end
            await io(self._files.end, record, shown.status, shown.error)
            return
        try:
            status = await self._estimate(record)
            await io(self._files.end, record, status)
            log.info("estimate %s: %s, %d pictures", shown.id, status, shown.progress.done)
        except PPLError as error:
            log.warning("estimate %s failed: %s", shown.id, error.detail)
            await io(self._files.end, record, EstimateStatus.FAILED, JobError(**error.to_dict()))
        except UnknownEstimate:
            raise
        except Exception:  # its owner is told, and the others go on
            log.exception("estimate %s failed", shown.id)
            fault = PPLError("an unexpected fault of the server; its log says more about it")
            await io(self._files.end, record, EstimateStatus.FAILED, JobError(**fault.to_dict()))
        removed = await io(self._files.make_room, self._gateway.settings.background_results_bytes)
        if removed:
            log.info("removed the oldest answers, to make room: %s", ", ".join(removed))

    async def _estimate(self, record: EstimateRecord) -> EstimateStatus:
        gateway, shown, io = self._gateway, record.shown, self._gateway.threads.io
        settings = gateway.settings
        query = Query.of(record.fields, record.names, settings.background_max_images, settings.max_images, record.video)
        version = await io(gateway.versions.version, shown.category, shown.version)
        maps = await io(gateway.versions.landmarks, version, query.landmarks) if query.landmarks else None
        started = time.perf_counter()
        before = await io(WrittenOutcomes, self._files.lines(shown.id))
        shown.progress.done, shown.progress.failed = len(before), before.failed
        shown.status, shown.started_at = EstimateStatus.RUNNING, shown.started_at or datetime.now(UTC)
        await io(self._files.write, record)
        sources = self._sources(record, query, version.side, before)
        found = Estimator(gateway, query, version, maps, patient=True).outcomes(sources)
        if isinstance(sources, VideoFrames):
            found = with_failure(found, sources)
        await io(_cut, self._files.lines(shown.id), before.end)
        if not await self._follow(record, found):
            return EstimateStatus.CANCELLED
        shown.progress.total = shown.progress.done
        async with self._writing:
            outcomes = await io(WrittenOutcomes, self._files.lines(shown.id))
            body, errors = await gateway.threads.decode(document, query, version, started, outcomes)
            if query.format != "native":  # which holds them itself
                await io(_replace, self._files.errors(shown.id), json.dumps(errors).encode())
            await io(_replace, self._files.result(shown.id), body)
        return EstimateStatus.SUCCEEDED

    async def _follow(self, record: EstimateRecord, found: AsyncIterator[Outcome]) -> bool:
        """Write down what comes, and how far it is; False once its owner wants it stopped."""
        io, shown = self._gateway.threads.io, record.shown
        lines = self._files.lines(shown.id)
        coming = asyncio.ensure_future(anext(found, None))
        looked = time.monotonic()
        try:
            while True:
                await asyncio.wait((coming,), timeout=_LOOK_EVERY_S)
                if coming.done():
                    outcome = coming.result()
                    if outcome is None:
                        return not await io(self._files.cancelled, shown.id)
                    coming = asyncio.ensure_future(anext(found, None))
                    shown.progress.done += 1
                    shown.progress.failed += outcome.error is not None
                    await io(_append, lines, outcome)
                if time.monotonic() - looked >= _LOOK_EVERY_S:
                    if await io(self._files.cancelled, shown.id):
                        return False
                    await io(self._files.write, record)
                    looked = time.monotonic()
        finally:
            await cancel_tasks((coming,))
            await found.aclose()  # type: ignore[attr-defined]  # a generator

    def _sources(
        self, record: EstimateRecord, query: Query, side: int, done: Container[int]
    ) -> AsyncIterable[Source] | Iterable[Source]:
        read = partial(self._files.picture, record.shown.id)
        if query.every:
            settings = self._gateway.settings
            return VideoFrames(
                read(0),
                record.names[0],
                query.every,
                query.most_frames(settings.background_max_images),
                side,
                query.boxes[0],
                video_limits(settings, VIDEO_TIMEOUT_S),
                self._gateway.threads.video,
                done,
            )
        return (
            Upload(index, name, read(index).read_bytes, boxes)
            for index, (name, boxes) in enumerate(zip(query.names, query.boxes, strict=True))
            if index not in done
        )


def video_limits(settings: Settings, timeout_s: float) -> VideoLimits:
    """What a video may be whose frames are estimated; its bytes are bounded where it is received."""
    return VideoLimits(
        max_pixels=settings.image_max_pixels,
        min_side_px=settings.image_min_side_px,
        memory_bytes=settings.video_memory_bytes,
        timeout_s=timeout_s,
    )


def _cut(lines: Path, end: int) -> None:
    """Leave the whole lines so far, to write on, without one that was cut short."""
    with lines.open("ab") as file:
        file.truncate(end)


def _append(lines: Path, outcome: Outcome) -> None:
    # opened anew each time: whoever is stopped here has nothing to close
    with lines.open("ab") as file:
        file.write(as_line(outcome))


def _replace(path: Path, body: bytes) -> None:
    with atomic_write(path) as file:
        file.write(body)
