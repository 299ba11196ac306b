"""Many pictures to poses, side by side and in order of completion; one that fails does not hinder the others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from service.contract.errors import PPLError, QueueFull, TooManyPixels, Unavailable
from service.contract.media.pictures import PictureLimits
from service.http.problems import problem_document
from service.runtime.redis_clients import QUEUE_ERRORS
from service.runtime.settings import Settings
from service.runtime.threads import cancel_tasks
from service.versions.landmarks import LandmarkMaps
from service.versions.reader import Version

from .batching import Coming
from .pictures import Answer, Fitted, describe
from .query import Query
from .results import Outcome
from .tickets import Group, Ticket

if TYPE_CHECKING:
    from service.gateway.gateway import Gateway

log = logging.getLogger(__name__)

_PAUSE_S = 0.5
_AWAY: tuple[type[Exception], ...] = (Unavailable, *QUEUE_ERRORS)


class Source(Protocol):
    """A picture of a request, or a frame of its video."""

    @property
    def index(self) -> int:
        """Which it is."""

    @property
    def extra(self) -> dict[str, Any]:
        """Members of its part of the answer."""

    def fit(self, side: int, limits: PictureLimits) -> list[Fitted]:
        """The model's square for each of its boxes. Raises PPLError."""

    def read(self) -> bytes:
        """Its bytes, to draw on."""


class Estimator:
    """The poses of the pictures of one request.

    Args:
        patient: waits for as long as no worker answers, as what works in the background does.
    """

    def __init__(
        self,
        gateway: Gateway,
        query: Query,
        version: Version,
        landmarks: LandmarkMaps | None = None,
        *,
        patient: bool = False,
    ) -> None:
        self._patient = patient
        self._gateway = gateway
        self._query = query
        self._version = version
        self._landmarks = landmarks
        self._group = group_of(query, version)
        self._drawn_pixels = 0
        self._down: Unavailable | None = None

    @property
    def down(self) -> Unavailable | None:
        """Why pictures were given up, where no worker answered."""
        return self._down

    async def outcomes(self, uploads: AsyncIterable[Source] | Iterable[Source]) -> AsyncIterator[Outcome]:
        """What came of each picture, as it comes. No more are under way than fill a batch."""
        waiting = aiter(uploads) if isinstance(uploads, AsyncIterable) else _each(uploads)
        reading: asyncio.Task[Source | None] | None = None
        running: set[asyncio.Task[Outcome]] = set()
        more = True
        try:
            while True:
                if more and reading is None and len(running) < self._gateway.settings.batch_limit:
                    reading = asyncio.ensure_future(anext(waiting, None))
                under_way = {*running, *([reading] if reading else [])}
                if not under_way:
                    return
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                if reading and reading.done():
                    upload, reading = reading.result(), None
                    more = upload is not None
                    if upload is not None:
                        running.add(asyncio.create_task(self._one(upload)))
                        continue
                done = {task for task in running if task.done()}
                running -= done
                for task in done:
                    yield task.result()
        finally:
            await cancel_tasks([*running, *([reading] if reading else [])])
            close = getattr(waiting, "aclose", None)
            if close:
                await close()

    async def _one(self, upload: Source) -> Outcome:
        started = time.perf_counter()
        try:
            if self._down:
                raise self._down
            with self._gateway.batcher.coming(1) as coming:
                fitted = await self._gateway.threads.decode(
                    upload.fit, self._version.side, self._gateway.picture_limits
                )
                self._count_drawn(fitted)
                queued = time.perf_counter()
                ticket = await self._ask([item.square for item in fitted], coming)
            answered = time.perf_counter()
            poses = await self._gateway.threads.decode(self._described, upload, fitted, ticket)
        except PPLError as error:
            if isinstance(error, Unavailable):
                self._down = error  # the others need not wait as long for the same answer
            return Outcome(upload.index, error={**problem_document(error), "index": upload.index, **upload.extra})
        except Exception:  # a fault of ours with one picture; the log says more, the others go on
            log.exception("picture %d of a request failed", upload.index)
            fault = PPLError("an unexpected fault of the server; its log says more about it")
            return Outcome(upload.index, error={**problem_document(fault), "index": upload.index, **upload.extra})
        waited = max(0.0, 1e3 * (answered - queued) - ticket.model_ms)
        return Outcome(upload.index, poses, timing_ms=(1e3 * (queued - started), waited, ticket.model_ms))

    async def _ask(self, squares: list[Any], coming: Coming) -> Ticket:
        """The poses of some squares, asked for again where there was no room for them."""
        deadline = time.monotonic() + self._gateway.settings.estimate_timeout_s
        while True:
            try:
                return await self._gateway.batcher.estimate(self._group, squares, coming)
            except QueueFull:
                coming.arrive()  # nobody shall wait for them
                if time.monotonic() > deadline and not self._patient:
                    raise
            except _AWAY:
                if not self._patient:
                    raise
            await asyncio.sleep(_PAUSE_S)

    def _described(self, upload: Source, fitted: list[Fitted], ticket: Ticket) -> list[Answer]:
        include, limits = self._query.include, self._gateway.picture_limits
        answers = [
            describe(upload.read, item, ticket.poses[place], self._version, include, limits, self._landmarks)
            for place, item in enumerate(fitted)
        ]
        return [{"index": answer.pop("index"), **upload.extra, **answer} for answer in answers]

    def _count_drawn(self, fitted: list[Fitted]) -> None:
        self._drawn_pixels += drawn_pixels(self._query, fitted)
        check_drawn(self._gateway.settings, self._drawn_pixels)


async def _each(uploads: Iterable[Source]) -> AsyncIterator[Source]:
    for upload in uploads:
        yield upload


def group_of(query: Query, version: Version) -> Group:
    """What pictures must have in common to share a batch with these."""
    return Group(
        version.category,
        version.name,
        version.side,
        query.refine_steps,
        "link_map" in query.include,
        "codes" in query.include,
    )


def drawn_pixels(query: Query, fitted: list[Fitted]) -> int:
    """Pixels that are drawn for some poses."""
    return query.kinds_drawn * sum(item.width * item.height for item in fitted)


def check_drawn(settings: Settings, pixels: int) -> None:
    """Raises TooManyPixels where so many would be drawn for one request."""
    if pixels > settings.max_drawn_pixels:
        raise TooManyPixels(
            f"the pictures to draw would have {pixels} pixels and {settings.max_drawn_pixels} are allowed in one "
            "request; send fewer or smaller pictures, or leave link_map and overlay out of include"
        )
